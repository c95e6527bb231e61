//! Tells in which process a VM is after a step; every check says what it requires in either case.

use std::time::Duration;

use cpr_qmp::message::Event;
use serde::Deserialize;

use crate::observe::process::Stat;

/// Name of the event that a VM continues in another process.
pub const CONTINUED: &str = "X_CPR_CONTINUED";

/// The process in which a VM is after a step.
#[derive(Clone, Debug, Default)]
pub enum Handover {
    /// The process in which it was before; an update keeps it.
    #[default]
    SameProcess,
    /// Its keeper's process.
    NewProcess(Box<Revival>),
}

impl Handover {
    /// The revival, if the VM is in another process now.
    pub fn revival(&self) -> Option<&Revival> {
        match self {
            Self::SameProcess => None,
            Self::NewProcess(revival) => Some(revival),
        }
    }
}

/// How a VM got into its keeper's process.
#[derive(Clone, Debug)]
pub struct Revival {
    /// The process that died, as it was when started.
    pub former: Stat,
    /// Its keepers when it died; empty: not known.
    pub keepers: Vec<Stat>,
    /// The data of the event.
    pub event: Continued,
    /// Time from the death of the former process until every vCPU sent a heartbeat again; `None`
    /// for a stopped guest, or if a vCPU sent none.
    pub beat: Option<Duration>,
    /// Standard error since the step began.
    pub console: String,
    /// Messages to the service manager since the step began.
    pub notified: Vec<String>,
}

/// The data of [`CONTINUED`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Continued {
    /// The process in which the VM is now.
    pub pid: i32,
    /// The process in which it was.
    pub former_pid: i32,
    /// Why the former process ended.
    pub reason: String,
}

impl Continued {
    /// Parses the data of `event`.
    pub fn of(event: &Event) -> Result<Self, String> {
        let data = event.data.clone().unwrap_or_default();
        serde_json::from_value(data.clone())
            .map_err(|e| format!("cannot parse the data of {CONTINUED}, {data}: {e}"))
    }
}
