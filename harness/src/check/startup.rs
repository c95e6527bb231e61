//! Start-up work is not done again by an update: the socket is the same, the PID file untouched.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Check, Scene};
use crate::backend::OverExec;

/// The check.
pub const CHECK: Check = Check {
    name: "startup",
    claim: "the QMP socket and the PID file are those that were made at boot",
    run,
};

/// What start-up leaves in the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    files: Vec<(PathBuf, Option<Identity>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    inode: u64,
    mode: u32,
    /// Seconds and nanoseconds of the last change to the content.
    written: (i64, i64),
}

impl Startup {
    /// Looks at `files`.
    pub fn of(files: &[&str]) -> Self {
        let look = |path: &&str| {
            let path = Path::new(*path);
            (path.to_owned(), Identity::of(path))
        };
        Self { files: files.iter().map(look).collect() }
    }
}

impl Identity {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::symlink_metadata(path).ok()?;
        let written = (meta.mtime(), meta.mtime_nsec());
        Some(Self { inode: meta.ino(), mode: meta.mode(), written })
    }
}

fn run(scene: &Scene<'_>) -> Result<(), String> {
    // Another VMM makes them anew, in the same places.
    let kept = scene.dialect.over_exec == OverExec::Kept;
    for (path, then) in &scene.startup.files {
        let name = path.display();
        let Some(then) = then else { return Err(format!("{name} was not made at boot")) };
        match Identity::of(path) {
            None => return Err(format!("{name} is gone")),
            Some(now) if now != *then && kept => {
                return Err(format!("{name} was made or written again"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}
