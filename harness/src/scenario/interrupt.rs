//! Commands, and clients that misbehave, while an update is held at a point.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::Step;

/// Not a fail point: the command is in its rehearsal, and everything else goes on.
pub const REHEARSING: &str = "rehearsing";

/// What comes while an update is held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interrupt {
    /// Where it is held: one of the VMM's `query-failpoints`, or [`REHEARSING`].
    pub point: String,
    /// What comes.
    pub with: Interruption,
}

/// A command, or a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Interruption {
    /// `stop`.
    Stop,
    /// `cont`.
    Cont,
    /// `system_reset`.
    Reset,
    /// The guest, waiting at a marker with `end=reset`, goes on and resets.
    GuestReset,
    /// `quit`.
    Quit,
    /// Another `migrate`.
    Migrate,
    /// `migrate_cancel`.
    MigrateCancel,
    /// A new client sends what is no JSON.
    Garbage,
    /// A client has sent half a command before; the rest comes after the update.
    Half,
    /// A client asks and asks, and reads nothing before the update is over.
    Silent,
}

impl Interruption {
    /// It calls the update off, while that can be done.
    pub fn cancels(self) -> bool {
        self == Self::MigrateCancel
    }
}

/// Everything that can come at `point`, to one VM; the last ends it.
pub fn every_interruption(point: &str) -> Vec<Step> {
    use Interruption::{Cont, Garbage, Half, Migrate, MigrateCancel, Quit, Reset, Silent, Stop};
    // Twice what leads to a state in which the guest is already.
    let all = [Stop, Stop, Half, Cont, Cont, Reset, Migrate, MigrateCancel, Garbage, Silent, Quit];
    let step = |with| Step::Interrupt(Interrupt { point: point.to_owned(), with });
    all.map(step).into()
}
