//! Signals that end a VMM, also in the middle of an update.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fault::Inject;
use super::model::{Expect, Migrate, RunWish, Step};

/// A signal that ends a VMM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub enum EndSignal {
    /// Ends the VMM at once.
    #[default]
    Sigkill,
    Sigterm,
    Sigint,
    Sighup,
}

impl EndSignal {
    /// Whether the VMM can handle the signal and shut down in an orderly way.
    pub fn asks(self) -> bool {
        self != Self::Sigkill
    }

    /// The name in a scenario.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sigkill => "SIGKILL",
            Self::Sigterm => "SIGTERM",
            Self::Sigint => "SIGINT",
            Self::Sighup => "SIGHUP",
        }
    }
}

/// A signal that is sent when an update reaches a fail point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalAt {
    /// The fail point, one of the VMM's `query-failpoints`.
    pub point: String,
    /// The signal.
    pub signal: EndSignal,
}

/// The steps for an update of a running guest, or with SIGINT of a stopped one, during which the
/// VMM must end. With SIGTERM, the update is always rehearsed.
pub fn ending_by(SignalAt { point, signal }: SignalAt) -> [Step; 3] {
    let guest = if signal == EndSignal::Sigint { RunWish::Stopped } else { RunWish::Running };
    let rehearsed = point == "rehearsal" || signal == EndSignal::Sigterm;
    let update =
        Migrate { rehearsal: Some(rehearsed), expect: Expect::Ended, ..Migrate::default() };
    let action = format!("signal={}", signal.name());
    [Step::Bring(guest), Step::Inject(Inject { point, action }), Step::Migrate(update)]
}
