//! Checks that every QMP connection survives and sees the same events.

use cpr_qmp::message::Event;

use super::diff::Difference;
use super::handover::CONTINUED;
use super::{Action, Check, Handover, Scene, revived, transferred};
use crate::backend::AcrossExec;
use crate::observe::qmp::label;

/// The `clients` check.
pub const CHECK: Check = Check {
    name: "clients",
    claim: "a second QMP client sees the same events, in one unbroken stream",
    run,
};

/// Labels of those `events` of an action that every client sees. Where all clients have to
/// reconnect, the guest may resume or reboot before they have; and a process that dies may have
/// sent an event to one client but not yet to the other.
pub fn common(
    action: &Action,
    handover: &Handover,
    across_exec: AcrossExec,
    events: &[Event],
) -> Vec<String> {
    if handover.revival().is_some() {
        let labels = events.iter().map(label);
        return labels.skip_while(|name| name != CONTINUED).collect();
    }
    let reconnected = across_exec == AcrossExec::Recreated || handover.transfer().is_some();
    let missed = |name: &str| reconnected && action.updated() && matches!(name, "RESUME" | "RESET");
    events.iter().map(label).filter(|name| !missed(name)).collect()
}

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let theirs = scene.second_client.map_err(|why| format!("the second client: {why}"))?;
    // At boot a client sees only the events after it has connected.
    if *scene.action == Action::Boot {
        return Ok(());
    }
    if let Some(transfer) = scene.handover.transfer() {
        transferred::same_events(transfer)?;
    }
    let across_exec = scene.dialect.across_exec;
    let common = |events| common(scene.action, scene.handover, across_exec, events);
    if scene.handover.revival().is_some() {
        let all: Vec<String> = theirs.iter().map(label).collect();
        // The check `events` judges what the first client saw.
        if let (true, Err(why)) =
            (revived::fits(scene), revived::check(scene.action, scene.ran_before, &all))
        {
            return Err(format!("the second client: {why}"));
        }
    }
    let (ours, theirs) = (common(scene.events), common(theirs));
    if ours == theirs {
        return Ok(());
    }
    let difference = Difference::of(&ours, &theirs);
    Err(format!(
        "the second client saw other events than the first: {}\n{}",
        difference.summary(),
        difference.unified()
    ))
}
