//! A log whose reader does not read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which output of the VMM is a pipe that nobody reads. It logs all there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stalled {
    /// Standard error, which the log goes to; the pipe fills as the VMM writes.
    Stderr,
    /// The same, full before the VMM starts.
    StderrFull,
    /// The log file is a FIFO, which fills as the VMM writes.
    Log,
    /// The same, full before the VMM starts.
    LogFull,
}

impl Stalled {
    /// The log goes to standard error.
    pub fn is_stderr(self) -> bool {
        matches!(self, Self::Stderr | Self::StderrFull)
    }

    /// No room from the beginning.
    pub fn is_full(self) -> bool {
        matches!(self, Self::StderrFull | Self::LogFull)
    }
}
