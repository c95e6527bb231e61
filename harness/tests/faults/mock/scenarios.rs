//! The scenarios in which the faults occur.

/// An update of a running guest, followed by one that fails.
pub const RUNNING: &str = r#"
summary = "running"
steps = [
  "boot",
  { migrate = {} },
  { migrate = { command = "enoent", expect = { failed = {} } } },
  "quit",
]
"#;

/// An update that is refused.
pub const REFUSED: &str = r#"
summary = "refused"
steps = ["boot", { migrate = { command = "empty-list", expect = { refused = "empty list" } } }, "quit"]
"#;

/// Like `RUNNING`, with a stopped guest.
pub const STOPPED: &str = r#"
summary = "stopped"
steps = [
  "boot",
  "stop",
  { migrate = {} },
  { migrate = { command = "enoent", expect = { failed = {} } } },
  "cont",
  "quit",
]
"#;

/// Updates that may end in any way, as long as the guest continues.
pub const KEPT: &str = r#"
summary = "kept"
steps = ["boot", { migrate = { command = "enoent", expect = "any" } }, { migrate = { expect = "any" } }]
"#;

/// A deadline that passes when the mock hangs.
pub const WATCHED: &str = r#"
summary = "watched"
time-limit-ms = 300
steps = ["boot", { migrate = {} }]
"#;

/// Kills the VMM once.
pub const KILLED: &str = r#"
summary = "killed"
vm = { keeper = "off" }
steps = ["boot", { kill-in-update = {} }, "quit"]
"#;

/// Kills the VMM before the update is requested, each time.
pub const KILLED_TOO_EARLY: &str = r#"
summary = "killed too early"
vm = { keeper = "off" }
steps = ["boot", { kill-in-update = { before-ms = 9, after-ms = 0, times = 2 } }, "quit"]
"#;

/// Kills a VMM that has a keeper, twice.
pub const REVIVED: &str = r#"
summary = "revived"
vm = { cpus = 2, keeper = "on" }
steps = ["boot", { kill-vmm = { expect = "revived", within-ms = 1, times = 2 } }, { migrate = {} }, "quit"]
"#;

/// Like `REVIVED`, with a stopped guest.
pub const REVIVED_STOPPED: &str = r#"
summary = "revived"
vm = { keeper = "on" }
steps = ["boot", "stop", { kill-vmm = { expect = "revived", within-ms = 1, times = 2 } }, "cont", "quit"]
"#;

/// Kills the VMM in an update, before and after the exec.
pub const CUT_OFF: &str = r#"
summary = "cut off"
steps = ["boot", { kill-at = "save" }, { kill-at = "vcpus" }, { wait = { heartbeats = 1 } }, "quit"]
"#;

/// Kills the VMM at any time of an update.
pub const CUT_ANYWHERE: &str = r#"
summary = "cut off"
vm = { cpus = 2 }
steps = [
  "boot",
  { kill-in-update = { expect = "revived", before-ms = 0, after-ms = 4, times = 8 } },
  "stop",
  { kill-in-update = { expect = "revived", before-ms = 0, after-ms = 4, times = 8 } },
  "cont",
  { migrate = { expect = "survives" } },
  "quit",
]
"#;

/// Kills a VMM that has no keeper, or no longer has one.
pub const GONE: &str = r#"
summary = "gone"
steps = ["boot", { migrate = {} }, { kill-vmm = { expect = "gone" } }]
"#;

/// Ends a VMM with a keeper by SIGTERM.
pub const ENDED: &str = r#"
summary = "ended"
vm = { keeper = "on" }
steps = ["boot", { end-by = "SIGTERM" }]
"#;

/// Injects a fault that the update survives.
pub const INJECTED: &str = r#"
summary = "injected"
steps = ["boot", { inject = { point = "save", action = "kill-helper" } }, { migrate = {} }, "quit"]
"#;

/// Sends several commands at once.
pub const RACING: &str = r#"
summary = "racing"
steps = ["boot", { race = ["migrate", "stop"] }, "cont", "quit"]
"#;

/// Like `RACING`, but the VMM ends.
pub const RACING_TO_THE_END: &str = r#"
summary = "racing to the end"
steps = ["boot", { race = ["migrate", "quit"] }]
"#;

/// Kills every process of the VMM.
pub const KILL: &str = r#"
summary = "kill"
steps = ["boot", "kill"]
"#;

/// Uses a socket for the serial port.
pub const SERIAL: &str = r#"
summary = "serial"
vm = { serial = "unix" }
steps = ["boot", { migrate = {} }, { serial = "connect" }, { wait = { serial-lines = 1 } }, { serial = "leave" }, "quit"]
"#;

/// Runs enough updates to detect memory growth.
pub const SOAKED: &str = r#"
summary = "soaked"
time-limit-ms = 120000
steps = ["boot", { soak = { times = 150 } }]
"#;

/// Two updates of a running guest, each to a new VMM's process.
pub const TRANSFERRED: &str = r#"
summary = "transferred"
vm = { cpus = 2 }
steps = ["boot", { migrate = { mode = "cpr-transfer", times = 2 } }, "quit"]
"#;

/// An update of a stopped guest to a new VMM's process.
pub const TRANSFERRED_STOPPED: &str = r#"
summary = "transferred"
steps = ["boot", "stop", { migrate = { mode = "cpr-transfer" } }, "cont", "quit"]
"#;
