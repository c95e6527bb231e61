//! Runs cases: steps under deadlines, checks after each step, and evidence of everything.

pub mod blackout;
pub mod case;
pub mod cgroup;
pub mod channel;
pub mod clients;
pub mod command;
pub mod environment;
pub mod evidence;
pub mod failed_update;
pub mod failure;
pub mod fault;
pub mod filtered;
pub mod growth;
pub mod hold;
pub mod host_lacks;
pub mod interrupt;
pub mod kill_in_update;
pub mod kill_vmm;
pub mod limit;
pub mod measured;
pub mod mounts;
pub mod notify;
pub mod orphans;
pub mod outside;
pub mod own_binary;
pub mod patience;
pub mod program;
pub mod refusal;
pub mod requirements;
pub mod revival;
pub mod schedule;
pub mod serial;
pub mod session;
pub mod signals;
pub mod soak;
pub mod stalled;
pub mod start;
pub mod steps;
pub mod storm;
mod stranger;
pub mod timeline;
pub mod update;
pub mod verdict;
pub mod vm;
pub mod watchdog;

use std::path::PathBuf;
use std::sync::Arc;

pub use environment::{EnvironmentError, RlimitError};
pub use failure::StepError;
pub use patience::Patience;
pub use verdict::{Report, Verdict};

use crate::backend::Backend;

/// Ends all VMs when this process ends, and makes it adopt their orphans. Every command that runs
/// VMs calls this once, before it creates a backend: that may start another build to query it.
pub fn guard() {
    signals::guard();
    orphans::adopt();
}

/// Settings shared by all cases of a run.
#[derive(Clone)]
pub struct Options {
    /// The VMM.
    pub backend: Arc<dyn Backend>,
    /// The folder for evidence.
    pub evidence: PathBuf,
    /// Leave the VM of a failed case running.
    pub keep: bool,
    /// Compare what KVM reports before and after each update, which makes updates take longer.
    pub audits: bool,
    /// The time limits of all waits.
    pub patience: Patience,
    /// The command-line options that selected the VMM, for the replay line.
    pub vmm_option: String,
}
