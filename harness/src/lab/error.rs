//! Why a lab does not run its command.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use thiserror::Error;

use super::modules::ModuleError;

/// Why a lab does not run its command.
#[derive(Debug, Error)]
pub enum LabError {
    /// A module is missing or invalid.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// A step of the preparations failed.
    #[error("cannot {what}: {source}")]
    Prepare {
        /// The step.
        what: String,
        /// What went wrong.
        source: io::Error,
    },
    /// QEMU could not be started.
    #[error("cannot start {}: {source}", .qemu.display())]
    Spawn {
        /// Its path.
        qemu: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The lab has not started in time.
    #[error("the lab did not start within {limit:?}{log}")]
    Late {
        /// The limit.
        limit: Duration,
        /// What the lab last wrote.
        log: Log,
    },
    /// The first process in the lab failed.
    #[error("the lab cannot run the command: {why}{log}")]
    Failed {
        /// Its message.
        why: String,
        /// What the lab last wrote.
        log: Log,
    },
    /// QEMU has ended without a result of the command.
    #[error("the lab ended without a result ({status}){log}")]
    Died {
        /// QEMU's exit status.
        status: ExitStatus,
        /// What the lab last wrote.
        log: Log,
    },
    /// The command ran too long.
    #[error("the command did not end within {limit:?} (--timeout){log}")]
    Timeout {
        /// The limit.
        limit: Duration,
        /// What the lab last wrote.
        log: Log,
    },
    /// Standard output or error of this process cannot be written to.
    #[error("cannot write the output of the command: {source}")]
    Unwritable {
        /// What went wrong.
        source: io::Error,
    },
    /// The command ended, but its output is incomplete.
    #[error(
        "the output of the command is incomplete: {seen:?} of {written:?} bytes arrived within {limit:?}{log}"
    )]
    Incomplete {
        /// Bytes of standard output and error that arrived.
        seen: [u64; 2],
        /// Bytes of them that the command wrote.
        written: [u64; 2],
        /// The limit.
        limit: Duration,
        /// What the lab last wrote.
        log: Log,
    },
}

impl LabError {
    /// Returns a function for `map_err` that reports the failed step `what`.
    pub fn prepare(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Prepare { what, source }
    }
}

/// What QEMU and the kernel's console have written at the end.
#[derive(Debug, Default)]
pub struct Log {
    /// The last lines.
    pub lines: Vec<String>,
    /// The file of the console's log.
    pub file: PathBuf,
}

impl std::fmt::Display for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let panic = self.lines.iter().find(|line| line.contains("Kernel panic"));
        if let Some((_, why)) = panic.and_then(|line| line.split_once("Kernel panic")) {
            write!(f, ": its kernel panicked{why}")?;
        }
        write!(f, "; console: {}", self.file.display())?;
        self.lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_panic_is_named_first() {
        let lines = ["[ 1.0] Kernel panic - not syncing: no init", "[ 1.1] ---[ end ]---"];
        let lines = lines.map(str::to_owned).to_vec();
        let log = Log { lines, file: "/tmp/cpr-x/console.log".into() };
        let error = LabError::Died { status: ExitStatus::from_raw(0), log };
        insta::assert_snapshot!(error, @r"
        the lab ended without a result (exit status: 0): its kernel panicked - not syncing: no init; console: /tmp/cpr-x/console.log
          [ 1.0] Kernel panic - not syncing: no init
          [ 1.1] ---[ end ]---
        ");
    }
}
