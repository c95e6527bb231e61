//! An update leaves nothing behind.

use super::{Check, Scene, fds};
use crate::observe::poll::{self, Deadline};
use crate::observe::process;

/// The check.
pub const CHECK: Check = Check {
    name: "leftovers",
    claim: "no CPR_EXEC_ variable, no state memfd, no child process",
    run,
};

/// Target of the state's memfd.
pub(super) const STATE_FD: &str = "/memfd:cpr-state";
/// What the variables of an update begin with: its number, and why another binary failed.
const VARIABLE: &str = "CPR_EXEC_";

fn run(scene: &Scene<'_>) -> Result<(), String> {
    if let Some(word) = scene.after.environ.iter().find(|w| w.starts_with(VARIABLE)) {
        return Err(format!("{word} is still in /proc/PID/environ"));
    }
    fds::settled(scene, |now| {
        let left = now.iter().find(|fd| fd.target.starts_with(STATE_FD));
        left.map_or(Ok(()), |fd| Err(format!("the state's memfd is still open: descriptor {fd}")))
    })?;
    if scene.after.children.is_empty() {
        return Ok(());
    }
    let mut children = scene.after.children.clone();
    poll::until(Deadline::after(scene.patience.settle), || {
        children = process::children(scene.pid()).ok()?;
        children.is_empty().then_some(())
    })
    .ok_or_else(|| {
        let children: Vec<String> =
            children.iter().map(|c| format!("{} ({}, state {})", c.pid, c.comm, c.state)).collect();
        format!("the VMM has child processes: {}", children.join(", "))
    })
}
