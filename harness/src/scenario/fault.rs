//! Faults inside an update, injected through the VMM's fail points.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A fault to inject once, into the next update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Inject {
    /// The fail point, one of the VMM's `query-failpoints`.
    pub point: String,
    /// The action at the fail point, such as `errno=EIO` or `panic`.
    pub action: String,
}

/// All fail points of our VMM; `fault/every-edge` tries each.
pub const POINTS: [&str; 31] = [
    "check",
    "rehearsal",
    "helper",
    "pause",
    "paused",
    "save",
    "channel",
    "copy",
    "state",
    "publish",
    "exec",
    "adopt",
    "owned",
    "log",
    "signals",
    "ram",
    "qmp",
    "serial",
    "machine",
    "read",
    "memslots",
    "create-irqchip",
    "create-pit",
    "create-vcpus",
    "devices",
    "vcpus",
    "vcpu-restore",
    "set-irqchip",
    "set-pit",
    "set-clock",
    "commit",
];

/// The deadline of an update that hangs, in milliseconds.
pub const HANGING_MS: u64 = 300;

/// Actions at a fail point that an update of our VMM must survive.
pub const ACTIONS: [&str; 9] = [
    "errno=EIO",
    "panic",
    "abort",
    "segv",
    "hang",
    "short-write",
    "kill-helper",
    "no-fds",
    "no-memory",
];
