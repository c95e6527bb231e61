//! Checks that every readable fact about the VM's files is unchanged, and that their modes are
//! right.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::{Check, Scene};
use crate::observe::facts::{Change, Facts};
use crate::observe::file_facts;
use crate::observe::poll::{self, Deadline};

/// The `files` check.
pub const CHECK: Check = Check {
    name: "files",
    claim: "the files of the VM are unchanged and there are no others, unless `audits.toml` says otherwise",
    run,
};

/// Prefix of the names of state files.
const STATE: &str = "state-";

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let mut seen = judge(scene, &scene.after.files);
    if seen.is_err() {
        // The PID file may be written after the event that announces the new process.
        poll::until(Deadline::after(scene.patience.settle), || {
            let facts = file_facts::of_vm(scene.work, scene.files);
            seen = judge(scene, &facts);
            scene.settled.borrow_mut().files = Some(facts).filter(|_| seen.is_ok());
            seen.is_ok().then_some(())
        });
    }
    seen
}

fn judge(scene: &Scene<'_>, now: &Facts) -> Result<(), String> {
    check_invariants(scene)?;
    let Some(before) = scene.before else { return Ok(()) };
    let mut changes = before.files.changes(now);
    if let Some(transfer) = scene.handover.transfer() {
        // The check `startup` judges the number in it, `leftovers` the sockets of the update.
        let left = |item: &str| {
            let names = transfer.sockets_left.iter().filter_map(|path| path.file_name()?.to_str());
            names.into_iter().any(|name| item.split(' ').next() == Some(name))
        };
        changes.retain(|change| !is_longer_number(change) && !left(&change.item));
    }
    scene.audit(CHECK.name, changes)
}

/// Whether a file contains a number as before, perhaps one of another length.
fn is_longer_number(change: &Change) -> bool {
    let is_number =
        |value: &Option<String>| value.as_ref().is_some_and(|v| v.starts_with("a number of "));
    is_number(&change.was) && is_number(&change.is)
}

/// Checks what must hold from the first boot on.
fn check_invariants(scene: &Scene<'_>) -> Result<(), String> {
    let umask = scene.after.facts.get("status.Umask");
    let umask = umask.and_then(|text| u32::from_str_radix(text, 8).ok()).unwrap_or(0);
    let states = fs::read_dir(scene.work).into_iter().flatten().flatten();
    let states = states.map(|entry| entry.path()).filter(|path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(STATE.as_bytes()))
    });
    let named = [&scene.files.qmp, &scene.files.serial_socket, &scene.files.pid_file];
    for path in named.map(|path| Path::new(path).to_owned()).into_iter().chain(states) {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let too_much = too_much(&meta, umask, path == Path::new(&scene.files.pid_file));
        if too_much != 0 {
            let mode = meta.mode() & 0o7777;
            return Err(format!(
                "the mode of {} is {mode:o}: bits {too_much:o} must be clear",
                path.display()
            ));
        }
    }
    Ok(())
}

/// The mode bits that are set but forbidden for a file of this kind.
fn too_much(meta: &Metadata, umask: u32, is_pid_file: bool) -> u32 {
    let forbidden = match meta.file_type() {
        kind if kind.is_socket() => umask,
        kind if kind.is_file() && is_pid_file => 0o133,
        // Only its owner may access a state file.
        kind if kind.is_file() => 0o177,
        _ => 0,
    };
    meta.mode() & forbidden
}
