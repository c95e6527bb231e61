//! Checks that a running guest makes progress on every vCPU, and a stopped one makes none.

use std::time::Duration;

use super::{Check, Scene};
use crate::observe::mailbox::{MailboxPage, View, phase};
use crate::observe::poll::{self, Deadline};

/// The `progress` check.
pub const CHECK: Check = Check {
    name: "progress",
    claim: "every vCPU's heartbeat advances while the guest runs, and stands still while it is stopped",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    if !scene.run_state.is_running() {
        return stands_still(scene);
    }
    continues(&scene.after.page, scene.vm.cpus, scene.patience.beat)?;
    let limit = scene.patience.revival;
    match scene.handover.revival().and_then(|revival| revival.beat) {
        Some(beat) if beat > limit => Err(format!(
            "the guest resumed {beat:?} after its VMM's death, at most {limit:?} is allowed"
        )),
        _ => Ok(()),
    }
}

/// Waits up to `limit` for the next heartbeat of each of `cpus` vCPUs.
pub fn continues(page: &MailboxPage, cpus: u32, limit: Duration) -> Result<(), String> {
    let mut start: Option<View> = None;
    let mut last = None;
    let moved = poll::until(Deadline::after(limit), || {
        let now = match page.read() {
            Ok(now) => now,
            Err(e) => return Some(Err(format!("cannot read the mailbox: {e}"))),
        };
        // The check `damage` reports what ended the guest.
        if now.damage.is_some() || matches!(now.phase, phase::DONE | phase::DAMAGED) {
            return Some(Ok(()));
        }
        let first = start.get_or_insert_with(|| now.clone());
        let done = now.is_up(cpus)
            && first.heartbeats(cpus).iter().zip(now.heartbeats(cpus)).all(|(a, b)| *a != b);
        last = Some(now);
        done.then_some(Ok(()))
    });
    if let Some(result) = moved {
        return result;
    }
    let (Some(start), Some(last)) = (start, last) else { return Ok(()) };
    if !last.is_up(cpus) {
        return Err(format!(
            "the guest is not up after {limit:?}: mailbox {}, phase {}, {} of {cpus} vCPUs online",
            if last.ready { "set up" } else { "not set up" },
            last.phase,
            last.cpus_online
        ));
    }
    let beats = start.heartbeats(cpus).into_iter().zip(last.heartbeats(cpus));
    let stuck: Vec<String> = beats
        .enumerate()
        .filter(|(_, (a, b))| a == b)
        .map(|(cpu, (a, _))| format!("vCPU {cpu} (at heartbeat {a})"))
        .collect();
    Err(format!("the guest should run; no heartbeat in {limit:?} of {}", stuck.join(", ")))
}

fn stands_still(scene: &Scene<'_>) -> Result<(), String> {
    let beats = |view: &View| view.heartbeats(scene.vm.cpus);
    let first = match scene.before {
        // Nothing may have moved since the previous step either, unless the guest rebooted.
        Some(before) if !scene.ran_before && !scene.action.resets() => beats(&before.mailbox),
        _ => beats(&scene.after.mailbox),
    };
    let moved = poll::during(scene.patience.still, || {
        let now = scene.after.page.read().ok()?;
        let now = beats(&now);
        (0..now.len()).find(|cpu| now[*cpu] != first[*cpu]).map(|cpu| (cpu, now[cpu]))
    });
    match moved {
        None => Ok(()),
        Some((cpu, now)) => Err(format!(
            "the guest should stand still; the heartbeat of vCPU {cpu} went from {} to {now}",
            first[cpu]
        )),
    }
}
