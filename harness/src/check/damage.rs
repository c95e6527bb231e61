//! The guest has found no damage, taken no exception, not panicked.

use std::time::Duration;

use super::{Check, Scene};
use crate::observe::mailbox::{MailboxPage, phase};
use crate::observe::poll::{self, Deadline};

/// The check.
pub const CHECK: Check =
    Check { name: "damage", claim: "the guest has found no damage and did not crash", run };

/// How the VMM's log calls a triple fault.
const TRIPLE_FAULT: &str = "guest_triple_fault";

/// How long a guest may take to write its record.
const WRITTEN: Duration = Duration::from_secs(2);

fn run(scene: &Scene<'_>) -> Result<(), String> {
    // A guest that resets itself that way says so.
    let no_log = || String::new();
    let resets_so = scene.vm.cmdline.split_whitespace().any(|word| word == "end=triple");
    look(&scene.after.page, scene.boots, if resets_so { &no_log } else { scene.log })
}

/// Looks at the mailbox of a guest that must have booted `boots` times, and at its VMM's `log`.
pub fn look(page: &MailboxPage, boots: u32, log: &dyn Fn() -> String) -> Result<(), String> {
    let read = || page.read().map_err(|e| format!("cannot read the mailbox: {e}"));
    let whole = poll::until(Deadline::after(WRITTEN), || match read() {
        Ok(view) if view.damage.as_ref().is_some_and(|damage| !damage.is_whole()) => None,
        other => Some(other),
    });
    let view = whole.unwrap_or_else(read)?;
    if let Some(damage) = view.damage {
        return Err(damage.to_string());
    }
    // After the look at the mailbox: what has led to what was seen there is in the log by now.
    if let Some(line) = log().lines().find(|line| line.contains(TRIPLE_FAULT)) {
        return Err(format!("the guest took a triple fault: {line}"));
    }
    if view.ready && view.boots > boots {
        return Err(format!(
            "the guest has booted {} times, must have {boots}: it was reset, and nobody asked for it",
            view.boots
        ));
    }
    if view.ready && view.phase == phase::DAMAGED {
        return Err("the guest says that it is damaged, and not how".into());
    }
    Ok(())
}
