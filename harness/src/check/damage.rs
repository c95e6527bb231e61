//! Checks that the guest found no damage, took no exception and did not panic.

use std::time::Duration;

use super::{Check, Scene};
use crate::observe::mailbox::{MailboxPage, phase};
use crate::observe::patience::patient;
use crate::observe::poll::{self, Deadline};

/// The `damage` check.
pub const CHECK: Check =
    Check { name: "damage", claim: "the guest has found no damage and did not crash", run };

/// What the VMM's log calls a triple fault.
const TRIPLE_FAULT: &str = "guest_triple_fault";

/// How long a guest may take to write its record.
const WRITTEN: Duration = Duration::from_secs(2);

fn run(scene: &Scene<'_>) -> Result<(), String> {
    // A guest that resets itself by a triple fault says so on its command line.
    let no_log = || String::new();
    let resets_so = scene.vm.cmdline.split_whitespace().any(|word| word == "end=triple");
    judge(&scene.after.page, scene.boots, if resets_so { &no_log } else { scene.log })
}

/// Checks the mailbox of a guest that must have booted `boots` times, and its VMM's `log`.
pub fn judge(page: &MailboxPage, boots: u32, log: &dyn Fn() -> String) -> Result<(), String> {
    let read = || page.read().map_err(|e| format!("cannot read the mailbox: {e}"));
    let whole = poll::until(Deadline::after(patient(WRITTEN)), || match read() {
        Ok(view) if view.damage.as_ref().is_some_and(|damage| !damage.is_whole()) => None,
        other => Some(other),
    });
    let view = whole.unwrap_or_else(read)?;
    if let Some(damage) = view.damage {
        return Err(damage.to_string());
    }
    // Read after the mailbox: by now the log has what led to the mailbox's content.
    if let Some(line) = log().lines().find(|line| line.contains(TRIPLE_FAULT)) {
        return Err(format!("the guest took a triple fault: {line}"));
    }
    if view.ready && view.boots > boots {
        return Err(format!(
            "unexpected reset: the guest has booted {} times, expected {boots}",
            view.boots
        ));
    }
    if view.ready && view.phase == phase::DAMAGED {
        return Err("the guest reports damage without details".into());
    }
    Ok(())
}
