//! In which process a VM is after a step; every check says what it demands in either case.

use std::time::Duration;

use cpr_qmp::message::Event;
use serde::Deserialize;

use crate::observe::process::Stat;

/// The event that says that a VM continues in another process.
pub const CONTINUED: &str = "X_CPR_CONTINUED";

/// In which process a VM is after a step.
#[derive(Clone, Debug, Default)]
pub enum Handover {
    /// In the one in which it was before, also after an update.
    #[default]
    SameProcess,
    /// In that of its keeper.
    NewProcess(Box<Revival>),
}

impl Handover {
    /// The revival, if the VM is in another process.
    pub fn revival(&self) -> Option<&Revival> {
        match self {
            Self::SameProcess => None,
            Self::NewProcess(revival) => Some(revival),
        }
    }
}

/// How a VM has come into the process in which it is now.
#[derive(Clone, Debug)]
pub struct Revival {
    /// The process that has died, as it was started.
    pub former: Stat,
    /// Its keepers when it died; none: not known.
    pub keepers: Vec<Stat>,
    /// What the event says.
    pub told: Continued,
    /// From the death of the former process until every vCPU had beaten again; none for a guest
    /// that stands still, or that did not.
    pub beat: Option<Duration>,
    /// What was written to standard error since the step began.
    pub console: String,
    /// What the service manager was told since the step began.
    pub notified: Vec<String>,
}

/// The data of [`CONTINUED`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Continued {
    /// The process in which the VM is now.
    pub pid: i32,
    /// The one in which it was.
    pub former_pid: i32,
    /// Why it is not there any more.
    pub reason: String,
}

impl Continued {
    /// What `event` says.
    pub fn of(event: &Event) -> Result<Self, String> {
        let data = event.data.clone().unwrap_or_default();
        serde_json::from_value(data.clone())
            .map_err(|e| format!("the data of {CONTINUED} are {data}: {e}"))
    }
}
