//! Holds an update at a point: the VMM opens a FIFO there and reads it until the writer closes it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::observe::poll::{self, Deadline};
use crate::process::environment::EnvironmentError;
use crate::process::program;
use crate::run::failure::StepError;

/// A FIFO that the VMM has not opened yet.
pub struct Hold {
    path: PathBuf,
}

/// A reader that is blocked until this is dropped.
#[must_use]
pub struct Held {
    _writer: File,
}

impl Hold {
    /// Creates the FIFO in `folder`; `number` distinguishes the FIFOs of a case.
    pub fn new(folder: &Path, number: u32) -> Result<Self, EnvironmentError> {
        let path = folder.join(format!("hold-{number}"));
        let made = mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR);
        made.map_err(|errno| EnvironmentError::file("create", &path)(errno.into()))?;
        Ok(Self { path })
    }

    /// Returns the fail point action that waits on the FIFO.
    pub fn action(&self) -> String {
        format!("hold={}", self.path.display())
    }

    /// Writes a program that waits on the FIFO in its rehearsal, and then executes `binary`.
    pub fn in_rehearsal(&self, binary: &str) -> Result<String, EnvironmentError> {
        let path = self.path.with_extension("sh");
        let (fifo, rehearses) = (self.path.display(), "[ -n \"$CPR_REHEARSAL\" ]");
        let text =
            format!("#!/bin/sh\n{rehearses} && read -r _ <'{fifo}'\nexec '{binary}' \"$@\"\n");
        program::write(&path, text.as_bytes()).map_err(EnvironmentError::file("write", &path))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Waits until a reader has opened the FIFO, while the VMM is `alive`.
    pub fn await_held(
        &self,
        limit: Duration,
        mut alive: impl FnMut() -> Result<(), StepError>,
    ) -> Result<Held, StepError> {
        let held = poll::until(Deadline::after(limit), || {
            // Fails with ENXIO while there is no reader.
            let writer =
                OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&self.path);
            match writer {
                Ok(writer) => Some(Ok(Held { _writer: writer })),
                Err(_) => alive().err().map(Err),
            }
        });
        held.unwrap_or_else(|| {
            let path = self.path.display();
            Err(StepError::Process(format!("{limit:?} after migrate no process waits at {path}")))
        })
    }
}
