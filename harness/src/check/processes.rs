//! After a revival exactly one process runs the guest.

use super::{Check, Scene};
use crate::observe::poll::{self, Deadline};
use crate::observe::process::{self, ProcError, Stat};

/// The check.
pub const CHECK: Check = Check {
    name: "processes",
    claim: "after a revival no process has the guest's RAM, or is the VM's, but the VMM and its keeper",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    if scene.handover.revival().is_none() {
        return Ok(());
    }
    let mut others = Ok(Vec::new());
    // What has held the RAM may be on its way out; and in the middle of an exec a process has no
    // environment.
    poll::until(Deadline::after(scene.patience.settle), || {
        others = others_of(scene);
        others.as_ref().is_ok_and(Vec::is_empty).then_some(())
    });
    let others = others.map_err(|e| e.to_string())?;
    if others.is_empty() {
        return Ok(());
    }
    let told: Vec<String> =
        others.iter().map(|p| format!("{} ({}, state {})", p.pid, p.comm, p.state)).collect();
    Err(format!("besides process {} the VM has these processes: {}", scene.pid(), told.join(", ")))
}

/// All that have the RAM, or were started by the VM, and are neither its VMM nor that one's keeper,
/// which the check `keeper` looks at.
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
