//! Signal handling: a signal that ends the harness also ends its VMs and removes their folders.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::observe::poll::{self, Deadline};
use crate::scenario::Signals;

/// How long a folder in use may take to be removed.
const REMOVED: Duration = Duration::from_secs(1);

/// How long further signals are ignored after one that asks for an end: Ctrl-C reaches a whole pipeline,
/// and some programs signal both a process and its group.
const SAME_REQUEST: Duration = Duration::from_millis(500);

/// The signals that end this process.
const GUARDED: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// The process groups of the running VMs.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Processes that have become VMMs, in the process groups of their predecessors.
static SUCCESSORS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// The folders of the running cases.
static FOLDERS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Locked for writing, for good, before the VMs are killed to end this process.
static ENDING: RwLock<()> = RwLock::new(());

/// Waits forever if a signal is ending this process, else delays that end while the guard exists:
/// what a case learns from a killed VM does not count.
pub fn unless_ending() -> RwLockReadGuard<'static, ()> {
    ENDING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Creates a temporary folder that is also removed if a signal ends this process.
pub fn guarded_folder() -> std::io::Result<(TempDir, FolderGuard)> {
    // Under the lock, which the signal thread takes and keeps while it ends this process.
    let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::Builder::new().prefix("cpr-").tempdir()?;
    folders.insert(folder.path().to_owned());
    let guard = FolderGuard(folder.path().to_owned());
    Ok((folder, guard))
}

/// Registers `folder` to be removed if a signal ends this process.
pub fn guard_folder(folder: &Path) -> FolderGuard {
    FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned());
    FolderGuard(folder.to_owned())
}

/// Unregisters its folder when dropped.
pub struct FolderGuard(PathBuf);

impl Drop for FolderGuard {
    fn drop(&mut self) {
        FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Registers the process group of a running VM.
pub fn register(group: i32) {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner).insert(group);
}

/// Unregisters a process group, because its VM has ended or is to stay.
pub fn forget(group: i32) {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
}

/// Registers a process that has become a VMM, which is reaped separately.
pub fn register_successor(pid: i32) {
    SUCCESSORS.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
}

/// Unregisters such a process, because it was reaped or is to stay.
pub fn unregister_successor(pid: i32) {
    SUCCESSORS.lock().unwrap_or_else(PoisonError::into_inner).remove(&pid);
}

/// Returns whether `pid` is the first process of a registered VM, or has become a VMM.
pub fn is_registered(pid: i32) -> bool {
    [&GROUPS, &SUCCESSORS]
        .iter()
        .any(|all| all.lock().unwrap_or_else(PoisonError::into_inner).contains(&pid))
}

/// In a child: resets all signals to their default action and unblocks them, whatever this process
/// has inherited or [`guard`] has blocked. Async-signal-safe.
pub fn reset() -> std::io::Result<()> {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: no handler is installed. The call fails for signals whose action cannot be set.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    Ok(SigSet::empty().thread_set_mask()?)
}

/// Makes this process independent of inherited signal settings: children can be waited for, and no
/// signal is blocked. Call it before other threads exist.
///
/// Ignored signals stay ignored in this process, so that `nohup` and background jobs survive a
/// hangup or an interrupt. Children call [`reset`].
pub fn begin() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // Best effort: a failure only affects signals sent to this process.
    let _ = SigSet::empty().thread_set_mask();
}

/// Returns the signals that end this process: those of [`GUARDED`] that it does not ignore.
fn guarded() -> SigSet {
    let ignored = |signal: &Signal| {
        let mut now = MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: only reads the action, into our own memory, which is initialized on success.
        unsafe {
            libc::sigaction(*signal as libc::c_int, ptr::null(), now.as_mut_ptr()) == 0
                && now.assume_init().sa_sigaction == libc::SIG_IGN
        }
    };
    GUARDED.into_iter().filter(|signal| !ignored(signal)).collect()
}

/// In a child: applies the signal settings that the executed program inherits. Async-signal-safe.
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

/// What a signal does before it ends the VMs and this process.
pub enum Ending {
    /// Nothing.
    AtOnce,
    /// It calls this.
    After(Box<dyn FnOnce() + Send>),
    /// It calls this, which returns whether it ends this process itself. Then only a second signal
    /// ends it here, at once: not SIGPIPE, and none that comes with the first.
    Asked(Box<dyn Fn(Signal) -> bool + Send>),
}

/// Ends every VM and this process on SIGINT, SIGTERM or SIGHUP, unless that signal is ignored, and
/// on a SIGPIPE that is sent to the process, which says that standard output has no reader any more.
///
/// Call it before other threads exist, because they must inherit the blocked signals. VMMs inherit
/// them too and therefore call [`reset`].
pub fn guard(ending: Ending) {
    begin();
    let mut signals = guarded();
    signals.add(Signal::SIGPIPE);
    if signals.thread_block().is_err() {
        return;
    }
    // Ignored until now, so it would not be pending. Blocked, it is as harmless to a writer.
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // Without the thread, PR_SET_PDEATHSIG still ends the VMMs with this process.
    let _ = std::thread::Builder::new().name("signals".into()).spawn(move || {
        // Those that another thread waits for must not be delivered, and lost, here.
        let _ = SigSet::all().thread_block();
        let Ok(mut signal) = signals.wait() else { return };
        match ending {
            Ending::AtOnce => {}
            Ending::After(first) => first(),
            Ending::Asked(ask) if ask(signal) => {
                let first = Instant::now();
                signals.remove(Signal::SIGPIPE);
                loop {
                    let Ok(second) = signals.wait() else { return };
                    if first.elapsed() >= SAME_REQUEST {
                        signal = second;
                        break;
                    }
                }
            }
            Ending::Asked(_) => {}
        }
        end(signal)
    });
}

/// Ends every VM, removes the folders of the running cases, and ends this process as `signal` does.
pub fn end(signal: Signal) -> ! {
    // First, and for good: the cases of these VMs would take their end for a failure.
    std::mem::forget(ENDING.write().unwrap_or_else(PoisonError::into_inner));
    for group in GROUPS.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = killpg(Pid::from_raw(*group), Signal::SIGKILL);
    }
    let folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    for folder in folders.iter() {
        // The folder's case may still be writing to it.
        poll::until(Deadline::after(REMOVED), || {
            // A cgroup's files cannot be removed; removing its folder is enough.
            let _ = std::fs::remove_dir(folder).or_else(|_| std::fs::remove_dir_all(folder));
            (!folder.exists()).then_some(())
        });
    }
    std::process::exit(128 + signal as i32)
}
