//! What the VMM has around it is what it was: signals, limits, priority, folders, rights.

use std::path::Path;

use super::{Action, Check, Scene};
use crate::observe::surroundings::process_name;

/// The check.
pub const CHECK: Check = Check {
    name: "neighbours",
    claim: "signal sets, limits, priority, affinity, folders, relations and rights are as before",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let Some(before) = scene.before else { return Ok(()) };
    let mut changes = before.surroundings.changes(&scene.after.surroundings);
    let (was, is) = (&before.process.comm, &scene.after.process.comm);
    if was != is && !names(scene).contains(is) {
        changes.push(format!("the process name was {was}, is {is}"));
    }
    if changes.is_empty() { Ok(()) } else { Err(changes.join("; ")) }
}

/// The names that the kernel gives a process of this command, which may be a link to its file.
fn names(scene: &Scene<'_>) -> Vec<String> {
    let command = match scene.action {
        Action::Update { culprit, .. } if scene.action.updated() => Some(culprit.as_str()),
        _ => None,
    };
    let executable = scene.action.updated().then_some(scene.after.executable.path.as_path());
    command.map(Path::new).into_iter().chain(executable).map(process_name).collect()
}
