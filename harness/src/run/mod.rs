//! Runs cases: steps under deadlines, checks after each step, and evidence of everything.

pub mod case;
pub mod evidence;
pub mod failure;
pub mod host_lacks;
pub mod linux;
pub mod measure;
pub mod peer;
pub mod requirements;
pub mod rounds;
pub mod schedule;
pub mod session;
pub mod signature;
pub mod update;
pub mod verdict;
pub mod watched;

use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::Backend;
use crate::observe::patience::Patience;
use crate::process::signals::Ending;
use crate::process::{orphans, signals};
pub use failure::StepError;
pub use verdict::{Report, Verdict};

/// Ends all VMs when this process ends, and makes it adopt their orphans. Every command that runs
/// VMs calls this once, before it creates a backend: that may start another build to query it.
pub fn guard() {
    guard_until(Ending::AtOnce);
}

/// Does the same as [`guard`]; `ending` says what happens before the end.
pub fn guard_until(ending: Ending) {
    signals::guard(ending);
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

impl Options {
    /// Creates the options of a run with audits and the usual time limits, after which no VM is left
    /// running. `vmm_option` is what selects `backend` on the command line.
    pub fn new(
        backend: Arc<dyn Backend>,
        evidence: impl Into<PathBuf>,
        vmm_option: impl Into<String>,
    ) -> Self {
        Self {
            backend,
            evidence: evidence.into(),
            keep: false,
            audits: true,
            patience: Patience::default(),
            vmm_option: vmm_option.into(),
        }
    }
}
