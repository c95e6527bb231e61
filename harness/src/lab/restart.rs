//! A restart of a lab's kernel, which a command asks for: what must outlive it, and who does it.
//!
//! The memory is persistent memory as the kernel sees it, with a file system whose files are mapped directly
//! (DAX), so that guest RAM in such a file is never anywhere else.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

/// The folder whose files outlive the restart.
pub const KEPT: &str = "/lab/kept";

/// The device with that folder's file system.
pub const DEVICE: &str = "/dev/pmem0";

/// The file with the command's [`Request`].
pub const REQUEST: &str = "/run/restart.json";

/// A restart that the command asked for before it ended. It is then started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The series of the kernel to restart into; none: the same release.
    pub series: Option<String>,
}

static ALLOWED: AtomicBool = AtomicBool::new(false);

/// Allows this process to ask for a restart: it ends then, and is started again with the same arguments, so it must
/// have nothing else to do.
pub fn allow() {
    ALLOWED.store(true, Ordering::Relaxed);
}

/// Whether this lab can be restarted: it has memory that outlives that, and starts the harness again.
pub fn is_possible() -> bool {
    // In a shell of the lab it is empty.
    super::outside().is_some() && Path::new(KEPT).is_dir()
}

/// Returns the folder whose files outlive a restart, if one is possible and allowed.
pub fn kept() -> Option<&'static Path> {
    (ALLOWED.load(Ordering::Relaxed) && is_possible()).then(|| Path::new(KEPT))
}

/// Has the lab's kernel restarted once this process has ended.
pub fn request(request: &Request) -> io::Result<()> {
    fs::write(REQUEST, serde_json::to_vec(request)?)
}

/// Returns the restart that was asked for, if any.
pub fn requested() -> io::Result<Option<Request>> {
    match fs::read(REQUEST) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
