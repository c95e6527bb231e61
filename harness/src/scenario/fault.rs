//! Faults inside an update, by the VMM's fail points.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::model::{Expect, Migrate, Step};

/// A fault that the next update meets, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Inject {
    /// Where: one of the VMM's `query-failpoints`.
    pub point: String,
    /// What.
    pub action: String,
}

/// All points at which a VMM of ours can be made to fail: `fault/every-edge` tries each.
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

/// How long an update that hangs is waited for, in milliseconds.
const HANGING_MS: u64 = 300;

/// Every action at `point`, each followed by an update that must succeed.
pub fn every_action(point: &str) -> Vec<Step> {
    let undone = |text: &str| Expect::Undone(text.to_owned());
    let here = format!("fail point {point}");
    let short_write = matches!(point, "channel" | "state");
    let actions = [
        ("errno=EIO", undone(&format!("{here}: Input/output error (os error 5)"))),
        ("panic", undone(&here)),
        ("abort", undone("SIGABRT")),
        ("segv", undone("SIGSEGV at address 0x8")),
        ("hang", undone("its deadline passed")),
        ("short-write", undone(" bytes after ")),
        ("kill-helper", Expect::Completed),
        ("no-fds", Expect::Kept),
        ("no-memory", Expect::Kept),
    ];
    let wanted = actions.into_iter().filter(|(action, _)| *action != "short-write" || short_write);
    wanted.flat_map(|(action, expect)| fault(point, action, expect)).collect()
}

fn fault(point: &str, action: &str, expect: Expect) -> [Step; 3] {
    let inject = Inject { point: point.to_owned(), action: action.to_owned() };
    let update = Migrate {
        // Only there it is of any use, and it takes its time.
        rehearsal: Some(point == "rehearsal"),
        deadline_ms: (action == "hang").then_some(HANGING_MS),
        expect,
        ..Migrate::default()
    };
    let good = Migrate { rehearsal: Some(false), ..Migrate::default() };
    [Step::Inject(inject), Step::Migrate(update), Step::Migrate(good)]
}
