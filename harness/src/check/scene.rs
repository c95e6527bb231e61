//! The input of the checks: a step that was done, and the VMM before and after it.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use cpr_qmp::message::Event;
use cpr_qmp::run_state::RunState;

use super::action::Action;
use super::expected::{self, Moment};
use super::gaps::Gaps;
use super::handover::Handover;
use crate::backend::Dialect;
use crate::observe::facts::{Change, Facts};
use crate::observe::fds::FdTable;
use crate::observe::files::Files;
use crate::observe::observation::Observation;
use crate::observe::patience::Patience;
use crate::observe::process::Executable;
use crate::observe::startup::Startup;
use crate::scenario::Vm;

/// What was read again because the first reading had not settled yet.
#[derive(Debug, Default)]
pub struct Settled {
    /// The descriptors.
    pub fds: Option<FdTable>,
    /// The facts of the process.
    pub process: Option<Facts>,
    /// The facts of the files.
    pub files: Option<Facts>,
}

/// One step and what was observed around it.
pub struct Scene<'a> {
    /// The VM as configured.
    pub vm: &'a Vm,
    /// The name of the VMM in reports.
    pub vmm: &'a str,
    /// The VMM's peculiarities.
    pub dialect: Dialect,
    /// The time limits.
    pub patience: Patience,
    /// Whether the checks that compare all that can be read run too.
    pub audits: bool,
    /// Whether the VMM uses KVM and this host has it.
    pub kvm: bool,
    /// The executable that the VMM must run.
    pub executable: &'a Executable,
    /// The arguments in the newest update command.
    pub arguments: &'a [String],
    /// What start-up left in the file system, right after boot.
    pub startup: &'a Startup,
    /// What the step did.
    pub action: &'a Action,
    /// The process in which the VM is now.
    pub handover: &'a Handover,
    /// The process that started the VMM and follows it, if a wrapper did.
    pub wrapper: Option<i32>,
    /// Whether each update executes a wrapper first, which changes the process in its own ways.
    pub wraps_itself: bool,
    /// The folder of the case, which every process started by the VM has in its `PATH`.
    pub work: &'a Path,
    /// Whether the guest ran before the step.
    pub ran_before: bool,
    /// The run state that the guest must have now.
    pub run_state: RunState,
    /// How often the guest must have booted.
    pub boots: u32,
    /// The events since the step began.
    pub events: &'a [Event],
    /// The status in the newest `MIGRATION` event since boot.
    pub last_status: Option<&'a str>,
    /// The gaps between the guest's heartbeats.
    pub gaps: Gaps<'a>,
    /// Returns what the VMM has logged since the step began.
    pub log: &'a dyn Fn() -> String,
    /// The events as another client saw them, or why that client failed.
    pub second_client: Result<&'a [Event], &'a str>,
    /// Protocol violations on any QMP connection so far.
    pub conversation: &'a [String],
    /// The descriptors when the build that runs now was last observed; `None` if it never was.
    pub fds_of_build: Option<&'a FdTable>,
    /// The facts of its process at that time.
    pub facts_of_build: Option<&'a Facts>,
    /// The files of the VM.
    pub files: &'a Files,
    /// The files of a new VMM that ended by itself without taking over.
    pub left_by_new: &'a [PathBuf],
    /// What the checks read once it had settled.
    pub settled: &'a RefCell<Settled>,
    /// Whether another build runs now than before the step.
    pub other_build: bool,
    /// The VMM before the step; `None` at boot.
    pub before: Option<&'a Observation>,
    /// The VMM after the step.
    pub after: &'a Observation,
}

impl Scene<'_> {
    /// Fails with those of `changes` that `audit` does not expect.
    pub fn audit(&self, audit: &str, changes: Vec<Change>) -> Result<(), String> {
        expected::judge(audit, self.vmm, Moment::of(self.action, self.handover), changes)
    }

    /// The PID of the VMM.
    pub fn pid(&self) -> i32 {
        self.after.process.pid
    }
}
