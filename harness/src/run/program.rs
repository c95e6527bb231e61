//! One lock between writing files to be executed and starting processes.
//!
//! A child that is forked while an executable is open for writing holds it open until it execs
//! itself, and whoever executes the file in that moment gets ETXTBSY.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

use super::signals;

const CLOEXEC: libc::c_int = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;

static FORK: Mutex<()> = Mutex::new(());

/// Starts a process, and registers it as a VM that is up.
pub fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let _alone = FORK.lock().unwrap_or_else(PoisonError::into_inner);
    // Under the lock: a child that nobody has registered is an orphan (see `orphans`).
    command.spawn().inspect(|child| signals::register(child.id() as i32))
}

/// In a child: whoever has started the harness may have left descriptors open in it, which are no
/// part of what is tested. Async-signal-safe.
pub fn inherit_nothing() -> std::io::Result<()> {
    // SAFETY: a system call on numbers; it closes nothing before `execve` does.
    let done = unsafe { libc::close_range(3, libc::c_uint::MAX, CLOEXEC) };
    Ok(Errno::result(done).map(drop)?)
}

/// Does `what` while no process is being started.
pub fn alone<T>(what: impl FnOnce() -> T) -> T {
    let _alone = FORK.lock().unwrap_or_else(PoisonError::into_inner);
    what()
}

/// Copies an executable file.
pub fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let _alone = FORK.lock().unwrap_or_else(PoisonError::into_inner);
    fs::copy(from, to).map(drop)
}

/// Writes an executable file.
pub fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let _alone = FORK.lock().unwrap_or_else(PoisonError::into_inner);
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}
