//! Nothing that KVM tells of the VM has changed, nor what only its process can ask for, whether anybody
//! saves it or not.

use super::{Check, Scene};

/// The check.
pub const CHECK: Check = Check {
    name: "kvm-state",
    claim: "everything that KVM tells of the VM crosses an update, and stays while it stands still",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let before = scene.before.and_then(|before| before.standing.as_ref());
    if let (Some(before), Some(after)) = (before, &scene.after.standing) {
        scene.audit("kvm", before.changes(after))?;
    }
    match &scene.after.crossing {
        Some([old, new]) => scene.audit("kvm-crossing", old.changes(new)),
        None => Ok(()),
    }
}
