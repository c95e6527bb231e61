//! The checks that run after every step, one invariant per file.

pub mod action;
pub mod blackout;
pub mod clients;
pub mod conversation;
pub mod damage;
pub mod diff;
pub mod error;
pub mod events;
pub mod exec;
pub mod executable;
pub mod expected;
pub mod fds;
pub mod files;
pub mod gaps;
pub mod gone;
pub mod handover;
pub mod interrupted;
pub mod keeper;
pub mod killed;
pub mod kvm;
pub mod kvm_state;
pub mod leftovers;
pub mod migrate_status;
pub mod outcome;
pub mod pid;
pub mod process;
pub mod processes;
pub mod progress;
pub mod queries;
pub mod race;
pub mod ram;
pub mod reported;
pub mod revived;
pub mod run_state;
pub mod scene;
pub mod startup;
pub mod threads;
pub mod transferred;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use action::{Action, Ending};
pub use handover::{Handover, Revival, Transfer};
pub use scene::{Scene, Settled};

/// A check that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The name of the check.
    pub check: String,
    /// What is wrong, in one line; where lists differ, followed by their difference.
    pub message: String,
}

impl Finding {
    /// Creates the finding `message` of `check`.
    pub fn new(check: &str, message: impl Into<String>) -> Self {
        debug_assert!(names().any(|known| known == check), "{check} is missing in OTHERS");
        Self { check: check.to_owned(), message: message.into() }
    }

    /// The check and the first line of the message.
    pub fn summary(&self) -> String {
        format!("{}: {}", self.check, self.first_line())
    }

    /// The first line of the message.
    pub fn first_line(&self) -> String {
        self.message.lines().next().unwrap_or_default().to_owned()
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.message)
    }
}

/// An invariant of a running VMM.
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// What it claims.
    pub claim: &'static str,
    /// Runs it; the error says what is wrong.
    pub run: fn(&Scene<'_>) -> Result<(), String>,
}

/// All checks, in the order in which they run: [`progress`] waits for the guest, then [`blackout`]
/// and [`damage`] look at what the guest found meanwhile.
pub const ALL: &[Check] = &[
    outcome::CHECK,
    error::CHECK,
    executable::CHECK,
    exec::CHECK,
    events::CHECK,
    clients::CHECK,
    conversation::CHECK,
    reported::CHECK,
    run_state::CHECK,
    migrate_status::CHECK,
    queries::CHECK,
    ram::CHECK,
    kvm::CHECK,
    kvm_state::CHECK,
    fds::CHECK,
    processes::CHECK,
    keeper::CHECK,
    leftovers::CHECK,
    startup::CHECK,
    process::CHECK,
    threads::CHECK,
    files::CHECK,
    progress::CHECK,
    blackout::CHECK,
    damage::CHECK,
];

/// The checks that compare everything they can read, in place of a list of what may go wrong.
const AUDITS: &[&str] = &[
    conversation::CHECK.name,
    exec::CHECK.name,
    files::CHECK.name,
    kvm_state::CHECK.name,
    process::CHECK.name,
    queries::CHECK.name,
];

/// Names of findings that are not those of a check in [`ALL`]: some checks run at other times, and
/// the rest are failures of a step, of a client, or of the harness.
pub const OTHERS: &[&str] = &[
    pid::NAME,
    gone::NAME,
    killed::NAME,
    "step",
    "serial",
    "memory",
    "available",
    "model",
    "watchdog",
    "harness",
];

/// Returns the names under which findings are reported.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|check| check.name).chain(OTHERS.iter().copied())
}

/// Runs all checks and returns those that fail.
pub fn all(scene: &Scene<'_>) -> Vec<Finding> {
    let wanted = ALL.iter().filter(|check| scene.audits || !AUDITS.contains(&check.name));
    let findings = wanted.filter_map(|check| {
        let message = (check.run)(scene).err()?;
        Some(Finding::new(check.name, message))
    });
    findings.collect()
}
