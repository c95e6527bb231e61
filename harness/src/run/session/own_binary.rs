//! The case's own copy of the VMM's binary, and changes to it while the VMM runs.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::observe::process::Executable;
use crate::process::environment::{EnvironmentError, make_folder};
use crate::process::program;
use crate::run::failure::StepError;
use crate::run::session::Session;
use crate::scenario::BinaryChange;

/// Copies `binary` to its own folder in `work`, under the same name.
pub fn copy(binary: &Path, work: &Path) -> Result<PathBuf, EnvironmentError> {
    let folder = work.join("own");
    make_folder(&folder)?;
    let copy = folder.join(binary.file_name().unwrap_or_default());
    program::copy(binary, &copy).map_err(EnvironmentError::file("write", &copy))?;
    Ok(copy)
}

impl Session<'_> {
    /// Changes the file that the VMM was started from.
    pub(super) fn change_binary(&mut self, change: BinaryChange) -> Result<(), StepError> {
        let path = self.started_from.clone();
        let done = match change {
            BinaryChange::Deleted => {
                fs::remove_file(&path).map_err(EnvironmentError::file("remove", &path))?;
                "deleted"
            }
            BinaryChange::Replaced => {
                let other = path.with_extension("other");
                program::write(&other, b"#!/bin/sh\nexit 1\n")
                    .and_then(|()| fs::rename(&other, &path))
                    .map_err(EnvironmentError::file("replace", &path))?;
                "replaced"
            }
            BinaryChange::Overwritten => self.overwrite(&path)?,
        };
        self.note_files();
        self.evidence.timeline.say("harness", format!("{} is {done}", path.display()));
        Ok(())
    }

    fn overwrite(&self, path: &Path) -> Result<&'static str, StepError> {
        let running = Executable::of(self.vm.pid()).is_ok_and(|executable| {
            Executable::at(path).is_ok_and(|file| file.inode == executable.inode)
        });
        match File::options().write(true).open(path) {
            Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy => {
                Ok("unchanged: a file being executed cannot be opened for writing (ETXTBSY)")
            }
            Err(e) => Err(EnvironmentError::file("open", path)(e).into()),
            // Linux 6.11 and 6.12 allow it; writing would then destroy the running VMM.
            Ok(_) if running => {
                Ok("unchanged: this kernel allows opening it for writing while it is executed")
            }
            Ok(mut file) => {
                let written = file.write_all(&[0; 4096]);
                written.map_err(EnvironmentError::file("write", path))?;
                Ok("overwritten: the VMM does not execute it")
            }
        }
    }
}
