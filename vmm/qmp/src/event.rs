//! Every event, typed (QEMU `qapi/run-state.json`, `qapi/migration.json`).

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::message::Event;
use crate::migration::MigrationStatus;
use crate::run_state::ShutdownCause;

/// What happened.
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
    /// The machine was shut down; the VMM is about to end.
    Shutdown {
        /// True if the guest asked for it.
        guest: bool,
        /// Why.
        reason: ShutdownCause,
    },
    /// The migration's status changed.
    Migration {
        /// To this.
        status: MigrationStatus,
    },
}

/// The guest is continued by another process, because its own has ended. Not one of QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Continued {
    /// The process that runs the guest now.
    pub pid: i32,
    /// The one that ran it before.
    pub former_pid: i32,
    /// How that one ended.
    pub reason: String,
}

impl Continued {
    /// Its name.
    pub const NAME: &str = "X_CPR_CONTINUED";

    /// The event to send: it happened now.
    pub fn now(&self) -> Event {
        Event::now(Self::NAME, Some(json!(self)))
    }
}

impl EventKind {
    /// The event to send: it happened now.
    pub fn now(self) -> Event {
        match self {
            Self::Stop => Event::now("STOP", None),
            Self::Resume => Event::now("RESUME", None),
            Self::Reset { guest, reason } => {
                Event::now("RESET", Some(json!({ "guest": guest, "reason": reason })))
            }
            Self::Shutdown { guest, reason } => {
                Event::now("SHUTDOWN", Some(json!({ "guest": guest, "reason": reason })))
            }
            Self::Migration { status } => {
                Event::now("MIGRATION", Some(json!({ "status": status })))
            }
        }
    }

    /// What `event` says; `None` if it is of another kind, as QEMU has many.
    pub fn of(event: &Event) -> Option<Self> {
        let mut tagged = json!({ "event": event.event });
        if let Some(data) = &event.data {
            tagged["data"] = data.clone();
        }
        serde_json::from_value(tagged).ok()
    }
}
