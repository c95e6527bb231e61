//! Commands, and clients that misbehave, while an update is held at a point.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Not a fail point: the command is being rehearsed while everything else continues.
pub const REHEARSING: &str = "rehearsing";

/// What happens while an update is held at a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interrupt {
    /// Where the update is held: one of the VMM's `query-failpoints`, or [`REHEARSING`].
    pub point: String,
    /// What happens meanwhile.
    pub with: Interruption,
}

/// A command, or a misbehaving client, during an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Interruption {
    /// `stop`.
    Stop,
    /// `cont`.
    Cont,
    /// `system_reset`.
    Reset,
    /// The guest, waiting at a marker with `end=reset`, continues and resets.
    GuestReset,
    /// `quit`.
    Quit,
    /// Another `migrate`.
    Migrate,
    /// `migrate_cancel`.
    MigrateCancel,
    /// A new client sends text that is not JSON.
    Garbage,
    /// A client sends half a command before the update and the rest after it.
    Half,
    /// A client keeps sending queries and reads no reply until the update is over.
    Silent,
}

impl Interruption {
    /// Whether it cancels the update, if that is still possible.
    pub fn cancels(self) -> bool {
        self == Self::MigrateCancel
    }
}
