//! Checks that every readable fact about the process is unchanged, and that some have the right
//! value.

use std::path::Path;

use super::{Action, Check, Scene};
use crate::backend::ExecState;
use crate::observe::facts::{Change, Facts};
use crate::observe::fds::{Descriptor, FdTable};
use crate::observe::poll::{self, Deadline};
use crate::observe::process::name_of;
use crate::observe::process_facts;

/// What the facts on arguments begin with.
const ARGUMENT: &str = "argument.";

/// The `process` check.
pub const CHECK: Check = Check {
    name: "process",
    claim: "every readable fact about the process is unchanged, unless it is a new one or `audits.toml` says otherwise",
    run,
};

/// The highest of the standard descriptors, which are inherited: input, output and error.
const STANDARD: i32 = 2;

fn run(scene: &Scene<'_>) -> Result<(), String> {
    if scene.wraps_itself {
        return Ok(());
    }
    // Threads and descriptors may still be going away.
    let mut seen = judge(scene, &scene.after.facts, &scene.after.fds);
    if seen.is_err() {
        poll::until(Deadline::after(scene.patience.settle), || {
            seen = judge_again(scene);
            seen.is_ok().then_some(())
        });
    }
    seen
}

fn judge_again(scene: &Scene<'_>) -> Result<(), String> {
    let fds = FdTable::read(scene.pid()).map_err(|e| e.to_string())?;
    let facts = process_facts::read(scene.pid(), &fds);
    judge(scene, &facts, &fds)?;
    scene.settled.borrow_mut().process = Some(facts);
    Ok(())
}

fn judge(scene: &Scene<'_>, now: &Facts, fds: &FdTable) -> Result<(), String> {
    check_invariants(scene, now, fds)?;
    // The operator, not the update, determines the attributes of a new VMM's process.
    let same = scene.before.filter(|_| scene.handover.transfer().is_none());
    let Some(before) = same else { return Ok(()) };
    let names = names(scene);
    let named = |change: &Change| {
        change.item == process_facts::NAME
            && change.is.as_ref().is_some_and(|is| names.contains(is))
    };
    let mut changes = before.facts.changes(now);
    changes.retain(|change| !process_facts::is_of_build(&change.item) && !named(change));
    if let Some(then) = scene.facts_of_build {
        let of_build = then.changes(now).into_iter();
        changes.extend(of_build.filter(|change| process_facts::is_of_build(&change.item)));
    }
    if scene.other_build {
        changes.retain(|change| !change.item.starts_with(ARGUMENT));
        changes.extend(options(&before.facts).changes(&options(now)));
    }
    changes.retain(|change| !is_judged_elsewhere(scene, change));
    scene.audit(CHECK.name, changes)
}

/// The arguments from the first option on: a build may be started by other words before it, as one that a harness
/// carries is.
fn options(facts: &Facts) -> Facts {
    let arguments = facts.iter().filter(|(item, _)| item.starts_with(ARGUMENT));
    let options = arguments.map(|(_, word)| word).skip_while(|word| !word.starts_with('-'));
    let numbered = options.zip(1..).map(|(word, n)| (format!("{ARGUMENT}{n:02}"), word.to_owned()));
    numbered.collect()
}

/// Whether another check judges `change`: `fds`, `kvm` and `leftovers` check which descriptors
/// exist, `leftovers` what is left of an update.
fn is_judged_elsewhere(scene: &Scene<'_>, change: &Change) -> bool {
    let ExecState { state, variables, .. } = scene.dialect.exec_state;
    let is_new_or_gone = change.was.is_none() || change.is.is_none();
    match change.item.split_once('.') {
        Some(("descriptor", target)) => is_new_or_gone || target.starts_with(state),
        Some(("environment", name)) => name.starts_with(variables),
        _ => false,
    }
}

/// Checks what must hold from the first boot on.
fn check_invariants(scene: &Scene<'_>, now: &Facts, fds: &FdTable) -> Result<(), String> {
    // After a step in the same process the check `fds` covers this.
    let compared = scene.before.filter(|_| scene.handover.transfer().is_none());
    let kept = !scene.dialect.ram_file_close_on_exec;
    let all = scene.dialect.close_on_exec;
    let exempt = |fd: &Descriptor| !all || kept && fd.target == scene.files.ram;
    let lacks = |fd: &&Descriptor| fd.number > STANDARD && !fd.close_on_exec && !exempt(fd);
    let inherited = fds.iter().find(lacks);
    if let (None, Some(fd)) = (compared, inherited) {
        return Err(format!("descriptor {fd} lacks close-on-exec"));
    }
    let ram = format!("mapping.{}", scene.dialect.exec_state.ram);
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

/// The names that the kernel may give a process of this command, which may be a link to its file.
fn names(scene: &Scene<'_>) -> Vec<String> {
    let command = match scene.action {
        Action::Update { culprit, .. } if scene.action.updated() => Some(culprit.as_str()),
        _ => None,
    };
    let executable = scene.action.updated().then_some(scene.after.executable.path.as_path());
    command.map(Path::new).into_iter().chain(executable).map(name_of).collect()
}
