//! Checks that the VMM is still the process that was started, or the one that was its keeper.

use std::process::ExitStatus;

use super::Revival;
use crate::observe::process::{self, Stat};

/// Name of this check, which runs before all others: without the process there is nothing to
/// observe.
pub const NAME: &str = "pid";

/// Checks after a revival that the former process is dead, and that `now` was its keeper and has
/// the same parent and process group.
pub fn inherited(revival: &Revival, now: &Stat) -> Result<(), String> {
    let (pid, former) = (now.pid, &revival.former);
    let same = |a: &Stat, b: &Stat| (a.pid, a.start_time) == (b.pid, b.start_time);
    if Stat::read(former.pid).is_ok_and(|seen| same(&seen, former) && seen.is_alive()) {
        return Err(format!(
            "process {} still runs although the VM is in process {pid}",
            former.pid
        ));
    }
    if !revival.keepers.is_empty() && !revival.keepers.iter().any(|keeper| same(keeper, now)) {
        let keepers: Vec<String> = revival.keepers.iter().map(|k| k.pid.to_string()).collect();
        let keepers = keepers.join(", ");
        return Err(format!("the VM is in process {pid}, but the keeper was process {keepers}"));
    }
    if (now.parent, now.group) != (former.parent, former.group) {
        return Err(format!(
            "process {pid} has parent {} and group {}, expected parent {} and group {}",
            now.parent, now.group, former.parent, former.group
        ));
    }
    Ok(())
}

/// Checks that the process is still the one that was `started`; `ended` is its exit status, if
/// reaped.
pub fn check(started: &Stat, ended: Option<ExitStatus>, console: &str) -> Result<(), String> {
    let pid = started.pid;
    if let Some(status) = ended {
        let last = console.lines().last().map(|line| format!("; its last output: {line}"));
        let successor = process::group(pid).unwrap_or_default().into_iter().next();
        let successor = successor
            .map(|successor| format!("; process {} continues in its place", successor.pid));
        return Err(format!(
            "process {pid} has ended ({status}){}{}",
            successor.unwrap_or_default(),
            last.unwrap_or_default()
        ));
    }
    let now = Stat::read(pid).map_err(|e| e.to_string())?;
    if !now.is_alive() {
        return Err(format!("process {pid} has ended"));
    }
    if (now.start_time, now.parent) != (started.start_time, started.parent) {
        return Err(format!(
            "process {pid} is a different one: was started at tick {} by {}, now at {} by {}",
            started.start_time, started.parent, now.start_time, now.parent
        ));
    }
    Ok(())
}
