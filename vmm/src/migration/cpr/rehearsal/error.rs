//! Why a command that was rehearsed is not executed.

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use nix::unistd::Pid;

use super::super::command::ExecError;
use super::child::Leftover;

/// Why a command is not executed.
#[derive(Debug, thiserror::Error)]
pub enum RehearsalError {
    /// A fail point.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// It cannot be executed at all.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The rehearsal itself could not be set up.
    #[error("cannot rehearse cpr-exec-command \"{command}\": {call}: {source}")]
    Setup {
        /// The command.
        command: String,
        /// The system call.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A descriptor could not be put where it is.
    #[error(
        "an update hands over descriptor {fd} under its number, the limit is {limit}: raise RLIMIT_NOFILE"
    )]
    Limit {
        /// Its number.
        fd: RawFd,
        /// The soft limit.
        limit: u64,
    },
    /// It ended.
    #[error(
        "cpr-exec-command \"{command}\" is no VMM that can go on with this guest: {how} without answering the rehearsal{stderr}"
    )]
    Ended {
        /// The command.
        command: String,
        /// How.
        how: String,
        /// What it said.
        stderr: String,
    },
    /// Another process than that of the update would be the new VMM.
    #[error(
        "cpr-exec-command \"{command}\" must exec the VMM: process {answered} answered the rehearsal, not process {started}, which was started: a wrapper must replace itself (exec)"
    )]
    Forked {
        /// The command.
        command: String,
        /// Who answered.
        answered: Pid,
        /// Who was started.
        started: Pid,
    },
    /// It ended, and something that it started did not.
    #[error(
        "cpr-exec-command \"{command}\" must exec the VMM: {how} without answering the rehearsal, and left process {orphan} behind: a wrapper must replace itself (exec){stderr}"
    )]
    LeftBehind {
        /// The command.
        command: String,
        /// How it ended.
        how: String,
        /// What it left.
        orphan: Pid,
        /// What it said.
        stderr: String,
    },
    /// It did not answer.
    #[error("cpr-exec-command \"{command}\" did not answer the rehearsal within {} ms{stderr}", .waited.as_millis())]
    Deadline {
        /// The command.
        command: String,
        /// How long it had.
        waited: Duration,
        /// What it said.
        stderr: String,
    },
    /// It answered something else.
    #[error(
        "cpr-exec-command \"{command}\" answered the rehearsal with something else than a VMM does: {why}{stderr}"
    )]
    Garbage {
        /// The command.
        command: String,
        /// What is wrong with it.
        why: String,
        /// What it said.
        stderr: String,
    },
    /// It is a VMM, and something keeps it from taking over.
    #[error("cpr-exec-command \"{command}\" cannot take over this guest: {step}: {why}{stderr}")]
    CannotTakeOver {
        /// The command.
        command: String,
        /// What it tried.
        step: String,
        /// Why it failed.
        why: String,
        /// What it said.
        stderr: String,
    },
    /// It is a VMM, and does not fit.
    #[error("cpr-exec-command {0}")]
    Differs(String),
    /// It was called off.
    #[error("the update was cancelled")]
    Cancelled,
    /// What it started is still there.
    #[error("{over}; {trouble}")]
    Remains {
        /// How it ended.
        over: String,
        /// What is there, and why.
        trouble: String,
    },
}

/// How a rehearsal that ended with `result` ended, if `left` is what it left.
pub fn outcome(
    command: &str,
    result: Result<(), RehearsalError>,
    left: &[Leftover],
) -> Result<(), RehearsalError> {
    let Some(trouble) = left.iter().find_map(Leftover::trouble) else { return result };
    let over = match result {
        Ok(()) => format!("the rehearsal of cpr-exec-command \"{command}\" is not over"),
        Err(error) => error.to_string(),
    };
    Err(RehearsalError::Remains { over, trouble })
}
