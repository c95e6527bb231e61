//! Checks that an update does not repeat start-up work: the sockets are the same, the PID file is
//! untouched.

use std::fs;
use std::path::Path;

use super::{Check, Handover, Scene};
use crate::backend::AcrossExec;
use crate::observe::poll::{self, Deadline};
use crate::observe::startup::Identity;

/// The `startup` check.
pub const CHECK: Check = Check {
    name: "startup",
    claim: "the QMP socket, the serial socket and the PID file are those created at boot; in another process the PID file names that one",
    run,
};

/// Checks that a rewritten PID file names `pid` and has the same mode as before.
fn names(path: &Path, pid: i32, mode: u32) -> Result<(), String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    if text != format!("{pid}\n") {
        return Err(format!("{} contains {text:?}, expected process {pid}", path.display()));
    }
    let same = Identity::of(path).is_some_and(|now| now.mode == mode);
    if same { Ok(()) } else { Err(format!("the mode of {} has changed", path.display())) }
}

fn run(scene: &Scene<'_>) -> Result<(), String> {
    // A VMM that recreates its descriptors creates them again, at the same paths.
    let kept = scene.dialect.across_exec == AcrossExec::Kept;
    for (path, then) in &scene.startup.files {
        if *path == scene.startup.pid_file && !scene.dialect.pid_file {
            continue;
        }
        let name = path.display();
        let Some(then) = then else { return Err(format!("{name} was not created at boot")) };
        let moved = !matches!(scene.handover, Handover::SameProcess);
        let rewritten = moved && *path == scene.startup.pid_file;
        match Identity::of(path) {
            Some(_) if rewritten => {
                let look = || names(path, scene.pid(), then.mode).err();
                // The file may be written after the event.
                let settled = Deadline::after(scene.patience.settle);
                if poll::until(settled, || look().is_none().then_some(())).is_none() {
                    look().map_or(Ok(()), Err)?;
                }
            }
            None => return Err(format!("{name} is gone")),
            Some(now) if now != *then && kept => {
                return Err(format!("{name} was recreated or written again"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}
