//! Errors from rehearsing a command.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use nix::unistd::Pid;

use super::super::command::ExecError;
use super::child::RemainingProcess;

/// Errors from a rehearsal, because of which the command is not executed.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// A fail point fired.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// The command cannot be executed at all.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The rehearsal itself could not be set up.
    #[error("cannot rehearse cpr-exec-command \"{command}\": {call}: {source}")]
    Setup {
        /// The command.
        command: String,
        /// The system call.
        call: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The limit on descriptors is too low for a number that is handed over.
    #[error(
        "an update hands over descriptor {fd} under the same number, the limit is {limit}: raise RLIMIT_NOFILE"
    )]
    Limit {
        /// Its number.
        fd: RawFd,
        /// The soft limit.
        limit: u64,
    },
    /// The command ended before it replied.
    #[error(
        "cpr-exec-command \"{command}\" cannot take over this guest: {how} before replying to the rehearsal{stderr}"
    )]
    Ended {
        /// The command.
        command: String,
        /// How it ended.
        how: String,
        /// What it wrote to stderr.
        stderr: String,
    },
    /// A process other than the one of the update would become the new VMM.
    #[error(
        "cpr-exec-command \"{command}\" must exec the VMM: the rehearsal started process {started}, but process {answered} replied: a wrapper must replace itself (exec)"
    )]
    Forked {
        /// The command.
        command: String,
        /// The process that replied.
        answered: Pid,
        /// The process that was started.
        started: Pid,
    },
    /// The command ended before it replied, and a process that it started did not.
    #[error(
        "cpr-exec-command \"{command}\" must exec the VMM: {how} before replying to the rehearsal, and left process {orphan} behind: a wrapper must replace itself (exec){stderr}"
    )]
    LeftBehind {
        /// The command.
        command: String,
        /// How it ended.
        how: String,
        /// The process it left behind.
        orphan: Pid,
        /// What it wrote to stderr.
        stderr: String,
    },
    /// The command did not reply in time.
    #[error("cpr-exec-command \"{command}\" did not answer the rehearsal within {} ms{stderr}", .waited.as_millis())]
    Deadline {
        /// The command.
        command: String,
        /// How long it had.
        waited: Duration,
        /// What it wrote to stderr.
        stderr: String,
    },
    /// The reply is invalid.
    #[error("cpr-exec-command \"{command}\" sent an invalid rehearsal reply: {why}{stderr}")]
    Garbage {
        /// The command.
        command: String,
        /// What is wrong with the reply.
        why: String,
        /// What it wrote to stderr.
        stderr: String,
    },
    /// The command is a VMM, but cannot take over.
    #[error("cpr-exec-command \"{command}\" cannot take over this guest: {step}: {why}{stderr}")]
    CannotTakeOver {
        /// The command.
        command: String,
        /// The step that failed.
        step: String,
        /// Why it failed.
        why: String,
        /// What it wrote to stderr.
        stderr: String,
    },
    /// The command is a VMM, but does not fit this VM.
    #[error("cpr-exec-command {0}")]
    Differs(String),
    /// The update was cancelled.
    #[error("the update was cancelled")]
    Cancelled,
    /// A process of the rehearsal could not be ended.
    #[error("{over}; {trouble}")]
    Remains {
        /// How the rehearsal ended.
        over: String,
        /// Which process remains, and why.
        trouble: String,
    },
}

/// Returns the result of a rehearsal that ended with `result` and left the processes `left`.
pub fn outcome(
    command: &str,
    result: Result<(), RehearsalError>,
    left: &[RemainingProcess],
) -> Result<(), RehearsalError> {
    let Some(trouble) = left.iter().find_map(RemainingProcess::trouble) else { return result };
    let over = match result {
        Ok(()) => format!("the rehearsal of cpr-exec-command \"{command}\" left a process behind"),
        Err(error) => error.to_string(),
    };
    Err(RehearsalError::Remains { over, trouble })
}
