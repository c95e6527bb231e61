//! Checks that an update does not repeat start-up work: the sockets are the same, the PID file is
//! untouched.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Check, Scene};
use crate::backend::OverExec;
use crate::observe::poll::{self, Deadline};

/// The `startup` check.
pub const CHECK: Check = Check {
    name: "startup",
    claim: "the QMP socket, the serial socket and the PID file are those created at boot; after a revival the PID file names the new process",
    run,
};

/// What start-up leaves in the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    files: Vec<(PathBuf, Option<Identity>)>,
    pid_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    inode: u64,
    mode: u32,
    /// Time of the last change to the content, in seconds and nanoseconds.
    written: (i64, i64),
}

impl Startup {
    /// Records the sockets and the PID file.
    pub fn of(sockets: &[&str], pid_file: &str) -> Self {
        let look = |path: &&str| {
            let path = Path::new(path);
            (path.to_owned(), Identity::of(path))
        };
        let files = sockets.iter().chain([&pid_file]).map(look).collect();
        Self { files, pid_file: pid_file.into() }
    }
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::symlink_metadata(path).ok()?;
        let written = (meta.mtime(), meta.mtime_nsec());
        Some(Self { inode: meta.ino(), mode: meta.mode(), written })
    }
}

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
    let kept = scene.dialect.over_exec == OverExec::Kept;
    for (path, then) in &scene.startup.files {
        let name = path.display();
        let Some(then) = then else { return Err(format!("{name} was not created at boot")) };
        let rewritten = scene.handover.revival().is_some() && *path == scene.startup.pid_file;
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
