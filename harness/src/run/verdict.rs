//! What comes out of a case.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::check::Finding;

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every step did what it should and every check held.
    Pass,
    /// What did not.
    Fail(Vec<Finding>),
    /// It was not run: why.
    Ignored(String),
    /// The machine did not let it run: why.
    Broken(String),
}

/// The report on one case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The case.
    pub case: String,
    /// How it ended.
    pub verdict: Verdict,
    /// The step at which it failed.
    pub failed_step: Option<String>,
    /// Updates that succeeded.
    pub updates: u32,
    /// The blackout of each update as its guest saw it, where it could be seen.
    pub blackouts: Vec<Duration>,
    /// The errors of updates that did not succeed, each once.
    #[serde(default)]
    pub failed_updates: Vec<FailedUpdate>,
    /// Updates cut off by SIGKILL.
    #[serde(default)]
    pub kills: Vec<Kill>,
    /// The VMM's own memory in KiB after boot, after the first update and after the last.
    pub memory_kib: Vec<u64>,
    /// How long it took.
    pub took: Duration,
    /// How to run exactly this again.
    pub replay: String,
    /// The VM that was left up: PID and socket.
    pub kept: Option<(i32, String)>,
}

/// An update that did not succeed, in words that are the same on every machine and in every run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedUpdate {
    /// What was wrong with it.
    pub what: String,
    /// `refused` or `failed`.
    pub ended: String,
    /// The error that its operator reads.
    pub error: String,
}

/// One SIGKILL in an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// When it was sent, in microseconds after `migrate`; negative before it.
    pub moment_us: i64,
    /// The last event of the update, if one was heard.
    pub last_event: Option<String>,
    /// How long it took until nothing was left.
    pub gone: Duration,
}

impl Report {
    /// Median and largest blackout.
    pub fn blackout(&self) -> Option<(Duration, Duration)> {
        let mut sorted = self.blackouts.clone();
        sorted.sort();
        Some((*sorted.get(sorted.len() / 2)?, *sorted.last()?))
    }
}
