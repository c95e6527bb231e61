//! Faults inside an update, injected through the VMM's fail points.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::{Expect, Migrate, Step};

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

/// How an update must end that runs into `action` at `point`; none if the action does not apply to
/// that point.
pub fn expected(point: &str, action: &str) -> Option<Expect> {
    let undone = |text: &str| Some(Expect::Undone(text.to_owned()));
    let here = format!("fail point {point}");
    match action {
        "errno=EIO" => undone(&format!("{here}: Input/output error (os error 5)")),
        "panic" => undone(&here),
        "abort" => undone("SIGABRT"),
        "segv" => undone("SIGSEGV at address 0x8"),
        "hang" => undone("its deadline passed"),
        "short-write" if !matches!(point, "channel" | "state") => None,
        "short-write" => undone(" bytes after "),
        "kill-helper" => Some(Expect::Completed),
        "no-fds" | "no-memory" => Some(Expect::Kept),
        _ => None,
    }
}

/// SIGKILL at `point`, which the VM must survive, followed by an update that must succeed.
pub fn kill_at(point: &str) -> [Step; 3] {
    fault(point, "sigkill", Expect::Revived)
}

/// Every action at `point`, each followed by an update that must succeed.
pub fn every_action(point: &str) -> Vec<Step> {
    let expected = |action| Some((action, expected(point, action)?));
    let wanted = ACTIONS.into_iter().filter_map(expected);
    wanted.flat_map(|(action, expect)| fault(point, action, expect)).collect()
}

fn fault(point: &str, action: &str, expect: Expect) -> [Step; 3] {
    let inject = Inject { point: point.to_owned(), action: action.to_owned() };
    let update = Migrate {
        // A rehearsal takes time and only matters for a fault inside it.
        rehearsal: Some(point == "rehearsal"),
        deadline_ms: (action == "hang").then_some(HANGING_MS),
        expect,
        ..Migrate::default()
    };
    let good = Migrate { rehearsal: Some(false), ..Migrate::default() };
    [Step::Inject(inject), Step::Migrate(update), Step::Migrate(good)]
}
