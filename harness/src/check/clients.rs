//! Every QMP connection sees the same events, and goes on.

use super::{Action, Check, Scene};
use crate::observe::qmp::label;

/// The check.
pub const CHECK: Check = Check {
    name: "clients",
    claim: "a second QMP client sees the same events, in one unbroken stream",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let theirs = scene.bystander.map_err(|why| format!("the second client: {why}"))?;
    // At boot a client sees what comes after it has connected.
    if *scene.action == Action::Boot {
        return Ok(());
    }
    let ours: Vec<String> = scene.events.iter().map(label).collect();
    let theirs: Vec<String> = theirs.iter().map(label).collect();
    if ours == theirs {
        return Ok(());
    }
    Err(format!("the second client saw [{}], the first [{}]", theirs.join(" "), ours.join(" ")))
}
