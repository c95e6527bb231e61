//! What the checks look at: a step that was done, and the VMM before and after it.

use std::cell::RefCell;
use std::path::Path;

use cpr_qmp::message::Event;
use cpr_qmp::run_state::RunState;

use super::blackout::Gaps;
use super::handover::Handover;
use super::startup::Startup;
use crate::audit::{self, Change, Facts, Moment};
use crate::backend::{Dialect, Files};
use crate::observe::fds::FdTable;
use crate::observe::observation::Observation;
use crate::observe::process::Executable;
use crate::run::Patience;
use crate::scenario::{Expect, Interruption, RaceCommand, Vm};

/// How an update ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Well.
    Completed,
    /// It was refused, with this error.
    Refused(String),
    /// It failed, with this error.
    Failed(String),
}

impl Ending {
    /// In one word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
        }
    }
}

/// What a step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing that the VMM took part in.
    Nothing,
    /// Started the VMM.
    Boot,
    /// `stop`.
    Stop,
    /// `cont`.
    Cont,
    /// `system_reset`.
    Reset,
    /// An update.
    Update {
        /// How it had to end.
        expect: Expect,
        /// How it ended.
        ending: Ending,
        /// What an error must name: the command, or the channel where that is the bad one.
        culprit: String,
        /// The errno an error must give.
        errno: Option<i32>,
    },
    /// Commands in one write, and how many updates were accepted.
    Race {
        /// The commands.
        commands: Vec<RaceCommand>,
        /// Updates accepted.
        accepted: usize,
    },
    /// SIGKILL to the VMM, which the VM has survived in another process.
    Killed {
        /// An update was asked for.
        in_update: bool,
    },
    /// An update that was held at a point.
    Interrupted {
        /// What came meanwhile.
        with: Interruption,
        /// It was seen to before the guest stopped, otherwise after the update.
        early: bool,
        /// How the update ended.
        ending: Ending,
    },
}

impl Action {
    /// The update that was done, if one was and succeeded.
    pub fn updated(&self) -> bool {
        match self {
            Self::Update { ending, .. } | Self::Interrupted { ending, .. } => {
                *ending == Ending::Completed
            }
            Self::Race { accepted, .. } => *accepted > 0,
            _ => false,
        }
    }

    /// Whether an update may have been under way.
    pub fn may_update(&self) -> bool {
        match self {
            Self::Killed { in_update } => *in_update,
            Self::Update { .. } | Self::Race { .. } | Self::Interrupted { .. } => true,
            _ => false,
        }
    }

    /// How its update ended, if it is one.
    pub fn ending(&self) -> Option<&Ending> {
        match self {
            Self::Update { ending, .. } | Self::Interrupted { ending, .. } => Some(ending),
            _ => None,
        }
    }

    /// The guest booted anew.
    pub fn resets(&self) -> bool {
        match self {
            Self::Reset => true,
            Self::Race { commands, .. } => commands.iter().any(|c| c.resets()),
            Self::Interrupted { with, .. } => *with == Interruption::Reset,
            _ => false,
        }
    }
}

/// What was read again, because what had been seen first was about to change.
#[derive(Debug, Default)]
pub struct Settled {
    /// The descriptors.
    pub fds: Option<FdTable>,
    /// Those of the process.
    pub process: Option<Facts>,
    /// Those of the files.
    pub files: Option<Facts>,
}

/// One step and what is seen around it.
pub struct Scene<'a> {
    /// The VM as it was asked for.
    pub vm: &'a Vm,
    /// The VMM, as reports call it.
    pub vmm: &'a str,
    /// The VMM's habits.
    pub dialect: Dialect,
    /// How long is waited for what.
    pub patience: Patience,
    /// The VMM uses KVM, and this host has it.
    pub kvm: bool,
    /// What the VMM must execute.
    pub executable: &'a Executable,
    /// What the newest command for an update gives the program.
    pub arguments: &'a [String],
    /// What start-up left, right after boot.
    pub startup: &'a Startup,
    /// What was done.
    pub action: &'a Action,
    /// In which process the VM is now.
    pub handover: &'a Handover,
    /// The folder of the case, which everything started by the VM has in its `PATH`.
    pub work: &'a Path,
    /// The guest ran before.
    pub ran_before: bool,
    /// The run state it must have now.
    pub run_state: RunState,
    /// How often the guest must have booted.
    pub boots: u32,
    /// The events since the step began.
    pub events: &'a [Event],
    /// The status in the newest `MIGRATION` event since boot.
    pub last_status: Option<&'a str>,
    /// The gaps between the guest's heartbeats.
    pub gaps: Gaps<'a>,
    /// What the VMM has logged since the step began, up to now.
    pub log: &'a dyn Fn() -> String,
    /// The same as another client saw them, or why it does not any more.
    pub bystander: Result<&'a [Event], &'a str>,
    /// What was against the protocol on any QMP connection, so far.
    pub conversation: &'a [String],
    /// The descriptors when the build that runs now was looked at last; none: it never was.
    pub fds_then: Option<&'a FdTable>,
    /// The same of the facts of its process.
    pub facts_then: Option<&'a Facts>,
    /// The files of the VM.
    pub files: &'a Files,
    /// What the audits have found once it had settled.
    pub settled: &'a RefCell<Settled>,
    /// Another build runs now than before.
    pub other_build: bool,
    /// The VMM before; none at boot.
    pub before: Option<&'a Observation>,
    /// The VMM now.
    pub after: &'a Observation,
}

impl Scene<'_> {
    /// What an `audit` has to say of what differs from `before`.
    pub fn audit(&self, audit: &str, changes: Vec<Change>) -> Result<(), String> {
        audit::judge(audit, self.vmm, Moment::of(self.action, self.handover), changes)
    }

    /// The VMM's process.
    pub fn pid(&self) -> i32 {
        self.after.process.pid
    }
}
