//! Checks that exactly one process runs a guest that has changed its process.

use std::time::Duration;

use super::{Check, Handover, Scene, Transfer};
use crate::observe::poll::{self, Deadline};
use crate::observe::proc_error::ProcError;
use crate::observe::process::{self, Stat};

/// The `processes` check.
pub const CHECK: Check = Check {
    name: "processes",
    claim: "in another process only the VMM and its keeper have the guest's RAM or belong to the VM, and only its vCPUs run",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    match scene.handover {
        Handover::SameProcess => return Ok(()),
        Handover::NewProcess(transfer) => stood_still(transfer)?,
        Handover::Revived(_) => {}
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

/// Checks that the former VMM's vCPUs did not run any more when the update had completed.
fn stood_still(transfer: &Transfer) -> Result<(), String> {
    match transfer.vcpus_ran {
        None | Some(Duration::ZERO) => Ok(()),
        Some(ran) => Err(format!(
            "the vCPUs of the former VMM, process {}, ran for {ran:?} after the update",
            transfer.former.pid
        )),
    }
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
    let own = |p: &Stat| {
        p.pid == scene.pid()
            || Some(p.pid) == scene.wrapper
            || p.is_keeper() && p.parent == scene.pid()
    };
    all.retain(|p| !own(p));
    all.sort_by_key(|p| p.pid);
    all.dedup_by_key(|p| p.pid);
    Ok(all)
}
