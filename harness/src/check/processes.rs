//! Checks that after a revival exactly one process runs the guest.

use super::{Check, Scene};
use crate::observe::poll::{self, Deadline};
use crate::observe::proc_error::ProcError;
use crate::observe::process::{self, Stat};

/// The `processes` check.
pub const CHECK: Check = Check {
    name: "processes",
    claim: "after a revival only the VMM and its keeper have the guest's RAM or belong to the VM",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    if scene.handover.revival().is_none() {
        return Ok(());
    }
    let mut others = Ok(Vec::new());
    // A process that held the RAM may still be exiting, and in the middle of an exec a process has
    // no environment.
    poll::until(Deadline::after(scene.patience.settle), || {
        others = others_of(scene);
        others.as_ref().is_ok_and(Vec::is_empty).then_some(())
    });
    let others = others.map_err(|e| e.to_string())?;
    if others.is_empty() {
        return Ok(());
    }
    let listed: Vec<String> =
        others.iter().map(|p| format!("{} ({}, state {})", p.pid, p.comm, p.state)).collect();
    Err(format!(
        "besides process {} the VM has unexpected processes: {}",
        scene.pid(),
        listed.join(", ")
    ))
}

/// All processes that have the RAM, or were started by the VM, other than the VMM and its keeper,
/// which the check `keeper` judges.
fn others_of(scene: &Scene<'_>) -> Result<Vec<Stat>, ProcError> {
    let mut all = match &scene.after.ram.file {
        Some(file) => process::holders(file.inode)?,
        None => Vec::new(),
    };
    all.extend(process::with_environment(scene.work.as_os_str().as_encoded_bytes())?);
    all.extend(process::group(scene.after.process.group)?);
    let own = |p: &Stat| p.pid == scene.pid() || p.is_keeper() && p.parent == scene.pid();
    all.retain(|p| !own(p));
    all.sort_by_key(|p| p.pid);
    all.dedup_by_key(|p| p.pid);
    Ok(all)
}
