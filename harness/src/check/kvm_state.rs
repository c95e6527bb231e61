//! Checks that all KVM state of the VM is unchanged, including what only its own process can read
//! and whether or not an update saves it.

use super::{Check, Scene};

/// The `kvm-state` check.
pub const CHECK: Check = Check {
    name: "kvm-state",
    claim: "all KVM state of the VM survives an update, and stays the same while the guest is stopped",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let before = scene.before.and_then(|before| before.stopped_kvm.as_ref());
    if let (Some(before), Some(after)) = (before, &scene.after.stopped_kvm) {
        scene.audit("kvm", before.changes(after))?;
    }
    match &scene.after.crossing {
        Some([old, new]) => scene.audit("kvm-crossing", old.changes(new)),
        None => Ok(()),
    }
}
