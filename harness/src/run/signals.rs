//! Ctrl-C leaves no VM behind.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::observe::poll::{self, Deadline};
use crate::scenario::Signals;

/// How long a folder in use may take to be removed.
const REMOVED: Duration = Duration::from_secs(1);

/// What ends this process.
const GUARDED: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Process groups of the VMs that are up.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Processes that have become VMMs, in the groups of those they came from.
static HEIRS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Folders of the cases that run.
static FOLDERS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Makes a folder that goes when this process does.
pub fn guarded_folder() -> std::io::Result<(TempDir, FolderGuard)> {
    // Made under the lock, which the end of this process takes and keeps.
    let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::Builder::new().prefix("cpr-").tempdir()?;
    folders.insert(folder.path().to_owned());
    let guard = FolderGuard(folder.path().to_owned());
    Ok((folder, guard))
}

/// Has `folder` go when this process does.
pub fn guard_folder(folder: &Path) -> FolderGuard {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned());
    FolderGuard(folder.to_owned())
}

/// Forgets its folder when dropped.
pub struct FolderGuard(PathBuf);

impl Drop for FolderGuard {
    fn drop(&mut self) {
        FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Notes that a VM is up.
pub fn register(group: i32) {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner).insert(group);
}

/// Notes that it is not any more, or that it is to stay.
pub fn forget(group: i32) {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
}

/// Notes that a process has become a VMM: it is waited for.
pub fn register_heir(pid: i32) {
    HEIRS.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
}

/// Notes that it has been waited for, or is to stay.
pub fn forget_heir(pid: i32) {
    HEIRS.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
}

/// True from the start of a VM to its end, and of a process that has become its VMM.
pub fn is_registered(pid: i32) -> bool {
    [&GROUPS, &HEIRS]
        .iter()
        .any(|all| all.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid))
}

/// In a child: no signal is ignored or blocked, whatever this process has inherited or [`guard`] has
/// blocked. Async-signal-safe.
pub fn reset() -> std::io::Result<()> {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: no handler is installed. Numbers whose action cannot be set are refused.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    Ok(SigSet::empty().thread_set_mask()?)
}

/// Makes this process independent of the signal settings that it has inherited: children can be
/// waited for, and nothing is blocked. To be called before other threads exist.
///
/// Signals that are ignored stay so here: `nohup` and background jobs are to outlive a hangup or an
/// interrupt. Children get [`reset`].
pub fn begin() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // Nothing else depends on it than signals that somebody sends.
    let _ = SigSet::empty().thread_set_mask();
}

/// What is to end this process: the signals that it does not ignore.
fn guarded() -> SigSet {
    let ignored = |signal: &Signal| {
        let mut now = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: only reads the action, into memory of ours, which is initialized if that succeeds.
        unsafe {
            libc::sigaction(*signal as libc::c_int, ptr::null(), now.as_mut_ptr()) == 0
                && now.assume_init().sa_sigaction == libc::SIG_IGN
        }
    };
    GUARDED.into_iter().filter(|signal| !ignored(signal)).collect()
}

/// In a child: makes the settings what the program to be executed is to inherit. Async-signal-safe.
pub fn set(settings: Signals) -> std::io::Result<()> {
    let blocked = match settings {
        Signals::SigchldIgnored => {
            // SAFETY: no handler is installed.
            unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
            return Ok(());
        }
        Signals::AllBlocked => SigSet::all(),
        Signals::SigrtminBlocked => {
            // SAFETY: all-zero is a valid `sigset_t`, and the two calls write only to it.
            unsafe {
                let mut set: libc::sigset_t = std::mem::zeroed();
                libc::sigemptyset(&mut set);
                libc::sigaddset(&mut set, libc::SIGRTMIN());
                SigSet::from_sigset_t_unchecked(set)
            }
        }
    };
    Ok(blocked.thread_block()?)
}

/// Ends every VM and this process on those of SIGINT, SIGTERM and SIGHUP that are not ignored.
///
/// To be called before other threads exist: they inherit the blocked signals. The VMMs would too:
/// see [`reset`].
pub(super) fn guard() {
    guard_after(|| {});
}

/// The same, after `first`: what else there is to say.
pub fn guard_after(first: impl FnOnce() + Send + 'static) {
    guard_with(None, first);
}

/// The same, but the first signal only asks for the end, by `ask`; the second one is obeyed.
pub fn guard_asking(ask: impl FnOnce() + Send + 'static) {
    guard_with(Some(Box::new(ask)), || {});
}

fn guard_with(ask: Option<Box<dyn FnOnce() + Send>>, first: impl FnOnce() + Send + 'static) {
    begin();
    let signals = guarded();
    if signals.thread_block().is_err() {
        return;
    }
    // Without the thread the VMMs still die with us, by PR_SET_PDEATHSIG.
    let _ = std::thread::Builder::new().name("signals".into()).spawn(move || {
        if let Some(ask) = ask {
            if signals.wait().is_err() {
                return;
            }
            ask();
        }
        let Ok(signal) = signals.wait() else { return };
        first();
        for group in GROUPS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let _ = killpg(Pid::from_raw(*group), Signal::SIGKILL);
        }
        let folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        for folder in folders.iter() {
            // Its case may still be writing there.
            poll::until(Deadline::after(REMOVED), || {
                // The files of a cgroup cannot be removed, and need not be.
                let _ = std::fs::remove_dir(folder).or_else(|_| std::fs::remove_dir_all(folder));
                (!folder.exists()).then_some(())
            });
        }
        std::process::exit(128 + signal as i32);
    });
}
