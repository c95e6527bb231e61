//! Checks that the VMM holds exactly one KVM VM.

use super::{Check, Scene, fds};
use crate::observe::fds::VM;

/// The `kvm` check.
pub const CHECK: Check = Check { name: "kvm", claim: "the VMM holds exactly one KVM VM", run };

fn run(scene: &Scene<'_>) -> Result<(), String> {
    if !scene.kvm {
        return Ok(());
    }
    fds::poll_table(scene, |now| match now.count(VM) {
        1 => Ok(()),
        n => Err(format!("the VMM holds {n} KVM VMs, expected exactly one")),
    })
    .map(drop)
}
