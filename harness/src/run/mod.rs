//! Runs cases: steps under deadlines, checks after each step, and evidence of everything.

pub mod case;
pub mod evidence;
pub mod failure;
pub mod host_lacks;
pub mod measure;
pub mod peer;
pub mod requirements;
pub mod schedule;
pub mod session;
pub mod signature;
pub mod update;
pub mod verdict;

use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::Backend;
use crate::observe::patience::Patience;
use crate::process::{orphans, signals};
pub use failure::StepError;
pub use verdict::{Report, Verdict};

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
