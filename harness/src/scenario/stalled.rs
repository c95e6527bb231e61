//! A log whose reader never reads.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which output of the VMM is a pipe that is never read. The VMM logs at its most verbose level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stalled {
    /// Standard error, which the log goes to; the pipe fills as the VMM writes.
    Stderr,
    /// Standard error, with the pipe full before the VMM starts.
    StderrFull,
    /// The log file, which is a FIFO that fills as the VMM writes.
    Log,
    /// The log file, with the FIFO full before the VMM starts.
    LogFull,
}

impl Stalled {
    /// Whether the log goes to standard error.
    pub fn is_stderr(self) -> bool {
        matches!(self, Self::Stderr | Self::StderrFull)
    }

    /// Whether the pipe is full before the VMM starts.
    pub fn is_full(self) -> bool {
        matches!(self, Self::StderrFull | Self::LogFull)
    }
}
