//! Publishing: between saving and `exec`, descriptors are made to survive an exec.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::command::{ExecCommand, ExecError};
use super::named_fds::OutgoingFds;
use super::state::SealedFd;

/// The error of a descriptor that cannot be published.
#[derive(Debug, thiserror::Error)]
#[error("cannot clear close-on-exec of descriptor {fd}: {source}")]
pub struct PublishError {
    fd: i32,
    source: std::io::Error,
}

/// While this exists, exactly the named descriptors and the CPR state stay open over an exec.
/// Dropping it makes them close-on-exec again, and closes the CPR state.
pub struct Published<'a> {
    fds: OutgoingFds<'a>,
    state: SealedFd,
}

impl<'a> Published<'a> {
    /// Clears close-on-exec on each descriptor.
    pub fn new(fds: OutgoingFds<'a>, state: SealedFd) -> Result<Self, PublishError> {
        // From here on, `Drop` undoes a failure.
        let published = Self { fds, state };
        for fd in published.all() {
            set_flags(fd, FdFlag::empty())
                .map_err(|errno| PublishError { fd: fd.as_raw_fd(), source: errno.into() })?;
        }
        Ok(published)
    }

    fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.fds.iter().chain([self.state.as_fd()])
    }

    /// Executes `command`. Returns only if it could not be executed; everything is undone then.
    pub fn exec(self, command: &ExecCommand) -> ExecError {
        command.exec(self.state.as_fd().as_raw_fd())
    }
}

impl Drop for Published<'_> {
    fn drop(&mut self) {
        for fd in self.all() {
            if let Err(error) = set_flags(fd, FdFlag::FD_CLOEXEC) {
                tracing::error!(?fd, %error, "cpr_unpublish_failed");
            }
        }
    }
}

fn set_flags(fd: BorrowedFd<'_>, flags: FdFlag) -> Result<(), Errno> {
    fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use cpr_qmp::migration::MigrationParameters;
    use cpr_qmp::run_state::RunState;

    use super::super::fall_back::Record;
    use super::super::state::{CprState, MigrationRecord, StateFd};
    use super::*;
    use crate::qmp::ServerState;
    use crate::state::{STATE_VERSION, SavedState};

    fn closes_on_exec(fd: &impl AsFd) -> bool {
        fcntl(fd, FcntlArg::F_GETFD).unwrap() & FdFlag::FD_CLOEXEC.bits() != 0
    }

    #[test]
    fn a_failed_exec_leaves_every_descriptor_as_it_was() {
        let (named, other) = (File::open("/dev/null").unwrap(), File::open("/dev/null").unwrap());
        let state = CprState {
            run_state: RunState::Paused,
            ram_blocks: Vec::new(),
            channel: SavedState::default().encode(STATE_VERSION).1,
            qmp: ServerState::default(),
            serial_listener: None,
            pending_events: Vec::new(),
            helper: None,
            migration: MigrationRecord::default(),
            pid_file: None,
            parameters: MigrationParameters::default(),
            msr_choice: None,
            live: None,
        };
        let record = Record::prepare(std::time::Duration::ZERO);
        let mut fds = OutgoingFds::default();
        fds.add("named", 0, named.as_fd());
        let sealed = StateFd::create().unwrap().write(&record, &state).unwrap();
        let published = Published::new(fds, sealed).unwrap();
        assert!(!closes_on_exec(&named));
        assert!(closes_on_exec(&other));
        let command = ExecCommand::prepare(Some(&["/nowhere".to_owned()])).unwrap();
        let _ = published.exec(&command);
        assert!(closes_on_exec(&named));
    }
}
