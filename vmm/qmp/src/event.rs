//! All events, as typed values (QEMU `qapi/run-state.json`, `qapi/migration.json`).

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::message::Event;
use crate::migration::MigrationStatus;
use crate::run_state::ShutdownCause;

/// An event of a known kind, with its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", content = "data", rename_all = "UPPERCASE")]
pub enum EventKind {
    /// The vCPUs were stopped.
    Stop,
    /// The vCPUs run again.
    Resume,
    /// The machine was reset.
    Reset {
        /// True if the guest asked for it.
        guest: bool,
        /// Why.
        reason: ShutdownCause,
    },
    /// The machine was shut down; the VMM is about to exit.
    Shutdown {
        /// True if the guest asked for it.
        guest: bool,
        /// Why.
        reason: ShutdownCause,
    },
    /// The power button was pressed.
    Powerdown,
    /// The migration's status changed.
    Migration {
        /// The new status.
        status: MigrationStatus,
        /// For how many microseconds it stopped the guest, once it has completed. Not in QEMU's.
        #[serde(rename = "x-downtime-us", default, skip_serializing_if = "Option::is_none")]
        x_downtime_us: Option<u64>,
    },
    /// A pass over RAM has begun.
    #[serde(rename = "MIGRATION_PASS")]
    MigrationPass {
        /// Its number, from 1 on.
        pass: u64,
    },
}

/// The data of the event that another process continues the guest, because its own has ended. Not
/// one of QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Continued {
    /// The process that runs the guest now.
    pub pid: i32,
    /// The process that ran it before.
    pub former_pid: i32,
    /// How the former process ended.
    pub reason: String,
}

impl Continued {
    /// The name of the event.
    pub const NAME: &str = "X_CPR_CONTINUED";

    /// Creates the event to send, with the current time.
    pub fn now(&self) -> Event {
        Event::now(Self::NAME, Some(json!(self)))
    }
}

impl EventKind {
    /// Creates the event to send, with the current time.
    pub fn now(self) -> Event {
        match self {
            Self::Stop => Event::now("STOP", None),
            Self::Resume => Event::now("RESUME", None),
            Self::Powerdown => Event::now("POWERDOWN", None),
            Self::Reset { guest, reason } => {
                Event::now("RESET", Some(json!({ "guest": guest, "reason": reason })))
            }
            Self::Shutdown { guest, reason } => {
                Event::now("SHUTDOWN", Some(json!({ "guest": guest, "reason": reason })))
            }
            Self::Migration { status, x_downtime_us } => {
                let mut data = json!({ "status": status });
                if let Some(us) = x_downtime_us {
                    data["x-downtime-us"] = json!(us);
                }
                Event::now("MIGRATION", Some(data))
            }
            Self::MigrationPass { pass } => {
                Event::now("MIGRATION_PASS", Some(json!({ "pass": pass })))
            }
        }
    }

    /// Creates the event of a migration's new status.
    pub fn migration(status: MigrationStatus) -> Self {
        Self::Migration { status, x_downtime_us: None }
    }

    /// Returns a migration's new status, if that is what the event is about.
    pub fn migration_status(self) -> Option<MigrationStatus> {
        match self {
            Self::Migration { status, .. } => Some(status),
            _ => None,
        }
    }

    /// Parses `event`; `None` if it is of an unknown kind, as many of QEMU's are.
    pub fn of(event: &Event) -> Option<Self> {
        let mut tagged = json!({ "event": event.event });
        if let Some(data) = &event.data {
            tagged["data"] = data.clone();
        }
        serde_json::from_value(tagged).ok()
    }
}
