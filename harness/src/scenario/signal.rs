//! Signals that ask a VMM to end.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fault::Inject;
use super::model::{Expect, Migrate, RunWish, Step};

/// A signal that ends a VMM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub enum EndSignal {
    /// Nobody is asked.
    #[default]
    Sigkill,
    Sigterm,
    Sigint,
    Sighup,
}

impl EndSignal {
    /// The VMM can end in its own way.
    pub fn asks(self) -> bool {
        self != Self::Sigkill
    }

    /// As it stands in a scenario.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sigkill => "SIGKILL",
            Self::Sigterm => "SIGTERM",
            Self::Sigint => "SIGINT",
            Self::Sighup => "SIGHUP",
        }
    }
}

/// A signal that comes when an update is at a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SignalAt {
    /// Where: one of the VMM's `query-failpoints`.
    pub point: String,
    /// Which.
    pub signal: EndSignal,
}

/// An update of a running guest, or with SIGINT of a stopped one, in which the VMM must end. With
/// SIGTERM each is rehearsed.
pub fn ending_by(SignalAt { point, signal }: SignalAt) -> [Step; 3] {
    let guest = if signal == EndSignal::Sigint { RunWish::Stopped } else { RunWish::Running };
    let rehearsed = point == "rehearsal" || signal == EndSignal::Sigterm;
    let update =
        Migrate { rehearsal: Some(rehearsed), expect: Expect::Ended, ..Migrate::default() };
    let action = format!("signal={}", signal.name());
    [Step::Bring(guest), Step::Inject(Inject { point, action }), Step::Migrate(update)]
}
