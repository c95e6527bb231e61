//! Running cases: steps under deadlines, checks after each, evidence of all of it.

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

/// Has VMs end with this process, and lets their orphans become its children. Every command that runs
/// VMs calls it once, before a backend is made: that may start another build, to ask it.
pub fn guard() {
    signals::guard();
    orphans::adopt();
}

/// What all cases of a run have in common.
#[derive(Clone)]
pub struct Options {
    /// The VMM.
    pub backend: Arc<dyn Backend>,
    /// Where evidence goes.
    pub evidence: PathBuf,
    /// Leave the VM of a failed case up.
    pub keep: bool,
    /// What KVM tells is compared over updates, which makes these take longer.
    pub audits: bool,
    /// How long is waited for what.
    pub patience: Patience,
    /// How the VMM was asked for on the command line, for the replay line.
    pub vmm_option: String,
}
