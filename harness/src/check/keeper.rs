//! Checks that the VM has a keeper if and only if it was asked to have one.

use super::{Check, Scene};
use crate::observe::poll::{self, Deadline};
use crate::observe::process::{self, Stat};
use crate::scenario::Keeper;

/// The `keeper` check.
pub const CHECK: Check = Check {
    name: "keeper",
    claim: "the VMM has one keeper with `--keeper on`, and none otherwise",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let wanted = usize::from(scene.vm.keeper == Some(Keeper::On));
    let mut keepers: Vec<Stat> =
        scene.after.children.iter().filter(|child| child.is_keeper()).cloned().collect();
    let fits = |keepers: &[Stat]| {
        keepers.len() == wanted && keepers.iter().all(|keeper| keeper.is_alive())
    };
    if fits(&keepers) {
        return Ok(());
    }
    poll::until(Deadline::after(scene.patience.settle), || {
        keepers = process::keepers(scene.pid());
        fits(&keepers).then_some(())
    })
    .ok_or_else(|| {
        let all: Vec<String> = keepers.iter().map(|k| format!("{} ({})", k.pid, k.state)).collect();
        let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
        format!("expected {wanted} keepers, found processes: {all}")
    })
}
