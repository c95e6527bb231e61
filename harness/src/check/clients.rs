//! Every QMP connection sees the same events, and goes on.

use cpr_qmp::message::Event;

use super::{Action, Check, Scene};
use crate::backend::OverExec;
use crate::observe::qmp::label;

/// The check.
pub const CHECK: Check = Check {
    name: "clients",
    claim: "a second QMP client sees the same events, in one unbroken stream",
    run,
};

/// Labels of those `events` of an action that every client sees: where all have to connect again, the
/// guest may go on, or boot anew, before one has.
pub fn common(action: &Action, over_exec: OverExec, events: &[Event]) -> Vec<String> {
    let missed = |name: &str| {
        over_exec == OverExec::Remade && action.updated() && matches!(name, "RESUME" | "RESET")
    };
    events.iter().map(label).filter(|name| !missed(name)).collect()
}

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let theirs = scene.bystander.map_err(|why| format!("the second client: {why}"))?;
    // At boot a client sees what comes after it has connected.
    if *scene.action == Action::Boot {
        return Ok(());
    }
    let common = |events| common(scene.action, scene.dialect.over_exec, events);
    let (ours, theirs) = (common(scene.events), common(theirs));
    if ours == theirs {
        return Ok(());
    }
    Err(format!("the second client saw [{}], the first [{}]", theirs.join(" "), ours.join(" ")))
}
