//! What start-up leaves in the file system.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What start-up leaves in the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    /// The sockets and the PID file.
    pub files: Vec<(PathBuf, Option<Identity>)>,
    /// The PID file.
    pub pid_file: PathBuf,
}

/// Which file it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    inode: u64,
    /// Its mode.
    pub mode: u32,
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
    /// That of `path`, if it is there.
    pub fn of(path: &Path) -> Option<Self> {
        let meta = fs::symlink_metadata(path).ok()?;
        let written = (meta.mtime(), meta.mtime_nsec());
        Some(Self { inode: meta.ino(), mode: meta.mode(), written })
    }
}
