//! Checks that the QMP connections follow the protocol.

use super::{Check, Scene};

/// The `qmp` check.
pub const CHECK: Check = Check {
    name: "qmp",
    claim: "on each QMP connection: one greeting, QEMU's line ends, one response to each request in order, event timestamps that agree with the clock",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    match scene.conversation {
        [] => Ok(()),
        wrong => Err(wrong.join("; ")),
    }
}
