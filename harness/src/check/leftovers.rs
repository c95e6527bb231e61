//! Checks that an update leaves nothing behind.

use super::{Check, Scene, fds};
use crate::observe::poll::{self, Deadline};
use crate::observe::process::{self, Stat};
use crate::scenario::Keeper;

/// The `leftovers` check.
pub const CHECK: Check = Check {
    name: "leftovers",
    claim: "no variable of the update, no state memfd, no socket, no child process but a keeper",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let of_transfer = scene.handover.transfer().map(|transfer| &*transfer.sockets_left);
    if let Some(path) = of_transfer.unwrap_or_default().first() {
        return Err(format!("the socket of the update still exists: {}", path.display()));
    }
    if let Some(path) = scene.left_by_new.first() {
        let path = path.display();
        return Err(format!("the new VMM has ended without taking over, and left {path}"));
    }
    let exec_state = scene.dialect.exec_state;
    let mut left = scene.after.environ.iter().filter(|word| word.starts_with(exec_state.variables));
    if let Some(word) = left.next().filter(|_| !exec_state.variable_stays) {
        return Err(format!("{word} is still in /proc/PID/environ"));
    }
    // A keeper may have to act at any time, so its state memfd stays open.
    let ready = usize::from(scene.vm.keeper == Some(Keeper::On));
    fds::poll_table(scene, |now| {
        let mut states = now.iter().filter(|fd| fd.target.starts_with(exec_state.state));
        let left = states.nth(ready);
        left.map_or(Ok(()), |fd| Err(format!("the state's memfd is still open: descriptor {fd}")))
    })?;
    // The check `keeper` judges keepers.
    let others = |children: Vec<Stat>| -> Vec<Stat> {
        children.into_iter().filter(|child| !child.is_keeper()).collect()
    };
    let mut children = others(scene.after.children.clone());
    if children.is_empty() {
        return Ok(());
    }
    poll::until(Deadline::after(scene.patience.settle), || {
        children = others(process::children(scene.pid()).ok()?);
        children.is_empty().then_some(())
    })
    .ok_or_else(|| {
        let children: Vec<String> =
            children.iter().map(|c| format!("{} ({}, state {})", c.pid, c.comm, c.state)).collect();
        format!("the VMM has child processes: {}", children.join(", "))
    })
}
