//! Tells in which process a VM is after a step; every check says what it requires in each case.

use std::path::PathBuf;
use std::time::Duration;

use cpr_qmp::message::Event;
use cpr_qmp::run_state::RunState;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::observe::files::Files;
use crate::observe::image::Image;
use crate::observe::process::Stat;
use crate::scenario::Mode;

/// Name of the event that a VM continues in another process.
pub const CONTINUED: &str = "X_CPR_CONTINUED";

/// The process in which a VM is after a step.
#[derive(Clone, Debug, Default)]
pub enum Handover {
    /// The process in which it was before; an update by exec keeps it.
    #[default]
    SameProcess,
    /// That of a new VMM, which was started for the update.
    NewProcess(Box<Transfer>),
    /// Its keeper's process, because its own process died.
    Revived(Box<Revival>),
}

impl Handover {
    /// The revival, if the VM is in its keeper's process now.
    pub fn revival(&self) -> Option<&Revival> {
        match self {
            Self::Revived(revival) => Some(revival),
            Self::SameProcess | Self::NewProcess(_) => None,
        }
    }

    /// The transfer, if the VM is in the process of a new VMM now.
    pub fn transfer(&self) -> Option<&Transfer> {
        match self {
            Self::NewProcess(transfer) => Some(transfer),
            Self::SameProcess | Self::Revived(_) => None,
        }
    }
}

/// How a VM got into the process of a new VMM, and what its former VMM was like when it had
/// reported the update as completed, before it was told to quit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Transfer {
    /// The mode of the update.
    pub mode: Mode,
    /// Whether the new VMM was started after the former one had ended.
    pub later: bool,
    /// The former process, as it was when started.
    pub former: Stat,
    /// Its command line and auxiliary vector.
    pub image: Image,
    /// Its files.
    pub files: Files,
    /// The run state it reported.
    pub run_state: RunState,
    /// The status in its `query-migrate`.
    pub migration: Option<String>,
    /// The statistics of RAM there.
    pub ram: Value,
    /// How long its vCPUs' threads ran on a CPU while they were watched.
    pub vcpus_ran: Option<Duration>,
    /// Its events from the start of the step until then.
    pub events: Vec<Event>,
    /// The same events as its second client saw them, or why that client failed.
    pub second_client: Result<Vec<Event>, String>,
    /// The sockets of the update's channels that still exist after it quit.
    pub sockets_left: Vec<PathBuf>,
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
