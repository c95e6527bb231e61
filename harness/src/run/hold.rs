//! Holding an update at a point: the VMM opens a FIFO there and reads until it is closed.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::failure::StepError;
use super::session::Session;
use super::{EnvironmentError, program};
use crate::observe::poll::{self, Deadline};

/// A FIFO that nobody has opened yet.
pub(super) struct Hold {
    path: PathBuf,
}

/// Somebody waits until this is dropped.
#[must_use]
pub(super) struct Held {
    _writer: File,
}

impl Hold {
    /// In `folder`; `number` tells those of a case apart.
    pub fn new(folder: &Path, number: u32) -> Result<Self, EnvironmentError> {
        let path = folder.join(format!("hold-{number}"));
        let made = mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR);
        made.map_err(|errno| EnvironmentError::file("create", &path)(errno.into()))?;
        Ok(Self { path })
    }

    /// What makes a fail point wait.
    pub fn action(&self) -> String {
        format!("hold={}", self.path.display())
    }

    /// A program that waits in its rehearsal, and then is `binary`.
    pub fn in_rehearsal(&self, binary: &str) -> Result<String, EnvironmentError> {
        let path = self.path.with_extension("sh");
        let (fifo, rehearses) = (self.path.display(), "[ -n \"$CPR_REHEARSAL\" ]");
        let text =
            format!("#!/bin/sh\n{rehearses} && read -r _ <'{fifo}'\nexec '{binary}' \"$@\"\n");
        program::write(&path, text.as_bytes()).map_err(EnvironmentError::file("write", &path))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Waits until somebody waits.
    pub fn await_held(&self, session: &mut Session<'_>) -> Result<Held, StepError> {
        let limit = session.options.patience.update;
        let held = poll::until(Deadline::after(limit), || {
            // Without a reader it fails with ENXIO.
            let writer =
                OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&self.path);
            match writer {
                Ok(writer) => Some(Ok(Held { _writer: writer })),
                Err(_) => session.check_process().err().map(Err),
            }
        });
        held.unwrap_or_else(|| {
            let path = self.path.display();
            Err(StepError::Process(format!("{limit:?} after migrate nobody waits at {path}")))
        })
    }
}
