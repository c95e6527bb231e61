//! The QMP connections keep to the protocol.

use super::{Check, Scene};

/// The check.
pub const CHECK: Check = Check {
    name: "qmp",
    claim: "on each QMP connection: one greeting, lines that end as QEMU's, one answer to each request in their order, events with timestamps that go with the clock",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    match scene.conversation {
        [] => Ok(()),
        wrong => Err(wrong.join("; ")),
    }
}
