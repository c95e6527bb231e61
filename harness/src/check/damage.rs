//! The guest has found no damage, taken no exception, not panicked.

use super::{Check, Scene};
use crate::observe::mailbox::phase;

/// The check.
pub const CHECK: Check =
    Check { name: "damage", claim: "the guest has found no damage and did not crash", run };

/// How the VMM's log calls a triple fault.
const TRIPLE_FAULT: &str = "guest_triple_fault";

fn run(scene: &Scene<'_>) -> Result<(), String> {
    if let Some(line) = scene.log.lines().find(|line| line.contains(TRIPLE_FAULT)) {
        return Err(format!("the guest took a triple fault: {line}"));
    }
    let view = scene.after.page.read().map_err(|e| format!("cannot read the mailbox: {e}"))?;
    if let Some(damage) = view.damage {
        return Err(damage.to_string());
    }
    if view.ready && view.boots > scene.boots {
        return Err(format!(
            "the guest has booted {} times, must have {}: it was reset, and nobody asked for it",
            view.boots, scene.boots
        ));
    }
    if view.ready && view.phase == phase::DAMAGED {
        return Err("the guest says that it is damaged, and not how".into());
    }
    Ok(())
}
