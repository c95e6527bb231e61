//! The process is what it was, in all that can be read of it; and some of it is as it must be.

use std::path::Path;

use super::{Action, Check, Scene};
use crate::audit::{Change, Facts, process};
use crate::backend::Handover;
use crate::observe::fds::FdTable;
use crate::observe::poll::{self, Deadline};
use crate::observe::process::name_of;

/// The check.
pub const CHECK: Check = Check {
    name: "process",
    claim: "all that can be read of the process is as before, unless `audits.toml` says otherwise",
    run,
};

/// Open for whoever started it: standard input, output and error.
const STANDARD: i32 = 2;

fn run(scene: &Scene<'_>) -> Result<(), String> {
    // Threads and descriptors may be on their way out.
    let mut seen = look(scene, &scene.after.facts, &scene.after.fds);
    if seen.is_err() {
        poll::until(Deadline::after(scene.patience.settle), || {
            seen = again(scene);
            seen.is_ok().then_some(())
        });
    }
    seen
}

fn again(scene: &Scene<'_>) -> Result<(), String> {
    let fds = FdTable::read(scene.pid()).map_err(|e| e.to_string())?;
    let facts = process::read(scene.pid(), &fds);
    look(scene, &facts, &fds)?;
    scene.settled.borrow_mut().process = Some(facts);
    Ok(())
}

fn look(scene: &Scene<'_>, now: &Facts, fds: &FdTable) -> Result<(), String> {
    as_it_must_be(scene, now, fds)?;
    let Some(before) = scene.before else { return Ok(()) };
    let names = names(scene);
    let named = |change: &Change| {
        change.item == process::NAME && change.is.as_ref().is_some_and(|is| names.contains(is))
    };
    let mut changes = before.facts.changes(now);
    changes.retain(|change| !process::is_of_build(&change.item) && !named(change));
    if let Some(then) = scene.facts_then {
        let of_build = then.changes(now).into_iter();
        changes.extend(of_build.filter(|change| process::is_of_build(&change.item)));
    }
    changes.retain(|change| !is_judged_elsewhere(scene, change));
    scene.audit(CHECK.name, changes)
}

/// Which descriptors there are is for the checks `fds`, `kvm` and `leftovers`, and what is left of an
/// update for `leftovers`.
fn is_judged_elsewhere(scene: &Scene<'_>, change: &Change) -> bool {
    let Handover { state, variables, .. } = scene.dialect.handover;
    let is_new_or_gone = change.was.is_none() || change.is.is_none();
    match change.item.split_once('.') {
        Some(("descriptor", target)) => is_new_or_gone || target.starts_with(state),
        Some(("environment", name)) => name.starts_with(variables),
        _ => false,
    }
}

/// What holds from the first boot on.
fn as_it_must_be(scene: &Scene<'_>, now: &Facts, fds: &FdTable) -> Result<(), String> {
    // Later that is for the check `fds`.
    let inherited = fds.iter().find(|fd| fd.number > STANDARD && !fd.close_on_exec);
    if let (None, Some(fd)) = (scene.before, inherited) {
        return Err(format!("descriptor {fd} is without close-on-exec"));
    }
    let ram = format!("mapping.{}", scene.dialect.handover.ram);
    let dumped = now
        .iter()
        .find(|(item, flags)| item.starts_with(&ram) && !flags.split(' ').any(|flag| flag == "dd"));
    match dumped {
        Some((item, flags)) if scene.dialect.ram_undumped => {
            Err(format!("guest RAM would be in a core dump: {item} is {flags}"))
        }
        _ => Ok(()),
    }
}

/// The names that the kernel gives a process of this command, which may be a link to its file.
fn names(scene: &Scene<'_>) -> Vec<String> {
    let command = match scene.action {
        Action::Update { culprit, .. } if scene.action.updated() => Some(culprit.as_str()),
        _ => None,
    };
    let executable = scene.action.updated().then_some(scene.after.executable.path.as_path());
    command.map(Path::new).into_iter().chain(executable).map(name_of).collect()
}
