//! Signals that end a VMM, also in the middle of an update.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
