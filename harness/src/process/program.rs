//! A lock that separates writing executable files from starting processes.
//!
//! A child that is forked while an executable is open for writing holds it open until the child
//! calls `execve`; executing the file in the meantime fails with ETXTBSY.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

use crate::process::signals;

const CLOEXEC: libc::c_int = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;

static FORK: Mutex<()> = Mutex::new(());

/// Starts a process and registers it as a running VM.
pub fn spawn(command: &mut Command) -> std::io::Result<Child> {
    let _alone = FORK.lock().unwrap_or_else(PoisonError::into_inner);
    // Under the lock: `orphans` reaps children that are not registered.
    command.spawn().inspect(|child| signals::register(child.id() as i32))
}

/// In a child: sets close-on-exec on all descriptors but the first three, because the harness may
/// have inherited some that are not part of the test. Async-signal-safe.
pub fn inherit_nothing() -> std::io::Result<()> {
    // SAFETY: a system call on numbers; descriptors stay open until `execve` closes them.
    let done = unsafe { libc::close_range(3, libc::c_uint::MAX, CLOEXEC) };
    Ok(Errno::result(done).map(drop)?)
}

/// Runs `what` while no process is being started.
pub fn exclusively<T>(what: impl FnOnce() -> T) -> T {
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
