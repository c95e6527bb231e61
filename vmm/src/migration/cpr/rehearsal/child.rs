//! The process that rehearses and its descendants: how it ended, and how they are ended.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::super::spawn::Spawned;
use super::process_tree::{ProcessTree, Subreaper};

/// How long killed processes may take to end: the kernel needs a while for a VM and its memory.
const ENDING: Duration = Duration::from_secs(5);
/// How long a process that must not be killed is given to end by itself.
const LEAVING: Duration = Duration::from_millis(100);

/// The first process of the rehearsal under way, for code that must end it without its [`Child`];
/// 0: none.
static UNDER_WAY: AtomicI32 = AtomicI32::new(0);

/// The first process of a rehearsal. Dropping it ends it and every process it has started.
#[derive(Debug)]
pub struct Child {
    // Its end is awaited before its memory is freed.
    spawned: Spawned,
    process_tree: ProcessTree,
    reaper: Option<Subreaper>,
}

/// A child of this process that was not ended: it cannot be, or we are not allowed to.
#[derive(Debug)]
pub struct RemainingProcess {
    pid: Pid,
    fd: OwnedFd,
    /// Why it still exists; `None`: it does not belong to the rehearsal, and is only to be reaped.
    why: Option<String>,
}

impl RemainingProcess {
    /// Returns a message if the process could not be ended.
    pub fn trouble(&self) -> Option<String> {
        self.why.as_ref().map(|why| format!("process {} cannot be ended: {why}", self.pid))
    }

    /// Returns the process ID.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Returns the pidfd, which becomes readable when the process has ended.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Reaps the process if it has ended; returns whether it has.
    pub fn reap(&self) -> bool {
        let ended = await_end(self.fd(), Instant::now());
        if ended {
            reap(self.fd());
            tracing::info!(pid = self.pid.as_raw(), "cpr_rehearsal_leftover_ended");
        }
        ended
    }
}

impl Child {
    /// Wraps a child that has just been started with a mark; `before` are the children from before.
    pub fn new(spawned: Spawned, mark: String, before: BTreeSet<Pid>, reaper: Subreaper) -> Self {
        UNDER_WAY.store(spawned.pid.as_raw(), Ordering::SeqCst);
        let process_tree = ProcessTree::new(spawned.pid, mark, before);
        Self { spawned, process_tree, reaper: Some(reaper) }
    }

    /// Returns the process ID.
    pub fn pid(&self) -> Pid {
        self.spawned.pid
    }

    /// See [`Spawned::executed`].
    pub fn executed(&mut self) -> Option<Result<(), Errno>> {
        self.spawned.executed()
    }

    /// Returns the descriptors that become readable when the child has executed the command and
    /// when it has ended.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.spawned.fd().into_iter().chain([self.spawned.ended.as_fd()])
    }

    /// Returns how the child ended, if it has. It stays a zombie, so its number is not reused.
    pub fn status(&self) -> Option<String> {
        let fd = self.spawned.ended.as_fd();
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::PIDFd(fd), flags) {
            Ok(WaitStatus::Exited(_, status)) => Some(format!("it exited with status {status}")),
            Ok(WaitStatus::Signaled(_, signal, _)) => Some(format!("it was killed by {signal}")),
            Ok(_) => None,
            // Other code has reaped it.
            Err(_) => await_end(fd, Instant::now()).then(|| "it ended".to_owned()),
        }
    }

    /// Returns a process that the child has left behind.
    pub fn orphan(&self) -> Option<Pid> {
        self.process_tree.orphans(self.pid()).first().copied()
    }

    /// Ends every process that belongs to the rehearsal, and returns those that remain.
    pub fn end(&mut self) -> Vec<RemainingProcess> {
        let Some(reaper) = self.reaper.take() else { return Vec::new() };
        let pid = self.pid();
        let fd = self.spawned.ended.try_clone();
        // Before it is reaped, as its number may be reused then.
        UNDER_WAY.store(0, Ordering::SeqCst);
        let mut left = end_family(&self.process_tree, pid, fd);
        drop(reaper);
        // Orphans that do not belong to the rehearsal: only this process can reap them.
        for orphan in self.process_tree.new_children() {
            if left.iter().all(|left| left.pid != orphan)
                && let Ok(fd) = open_pidfd(orphan)
            {
                left.push(RemainingProcess { pid: orphan, fd, why: None });
            }
        }
        for trouble in left.iter().filter_map(RemainingProcess::trouble) {
            tracing::error!(trouble, "cpr_rehearsal_left_process");
        }
        left
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// Kills the first process of the rehearsal under way and its group, for a process that is about to
/// execute its own binary again and loses the `Child`. Async-signal-safe.
pub fn kill_lost() {
    let pid = UNDER_WAY.swap(0, Ordering::SeqCst);
    if pid > 0 {
        // SAFETY: system calls on numbers, which are not reused until it is reaped. It may not lead
        // a group yet.
        unsafe {
            libc::kill(-pid, libc::SIGKILL);
            libc::kill(pid, libc::SIGKILL);
        }
    }
}

/// Ends `first`, its process group and the processes it has left behind.
fn end_family(
    process_tree: &ProcessTree,
    first: Pid,
    fd: std::io::Result<OwnedFd>,
) -> Vec<RemainingProcess> {
    let until = Instant::now() + ENDING;
    let mut left = Vec::new();
    let mut finish = |pid: Pid, fd: std::io::Result<OwnedFd>| match fd {
        Ok(fd) => left.extend(end(pid, fd, until)),
        Err(error) => tracing::error!(%pid, %error, "cpr_rehearsal_process_not_watched"),
    };
    // Until `first` is reaped, its number cannot be that of another group.
    let _ = killpg(first, Signal::SIGKILL);
    finish(first, fd);
    let mut seen = BTreeSet::new();
    loop {
        // Children of a process that has ended are our children now.
        let orphans: Vec<_> = process_tree.orphans(first).difference(&seen).copied().collect();
        if orphans.is_empty() || Instant::now() >= until {
            return left;
        }
        for pid in orphans {
            seen.insert(pid);
            finish(pid, open_pidfd(pid).map_err(std::io::Error::from));
        }
    }
}

fn end(pid: Pid, fd: OwnedFd, until: Instant) -> Option<RemainingProcess> {
    let killed = kill(fd.as_fd());
    let until = if killed.is_ok() { until } else { until.min(Instant::now() + LEAVING) };
    if await_end(fd.as_fd(), until) {
        reap(fd.as_fd());
        return None;
    }
    let why = match killed {
        Ok(()) => format!("it still exists {} s after SIGKILL", ENDING.as_secs()),
        Err(errno) => format!("kill: {}", std::io::Error::from(errno)),
    };
    Some(RemainingProcess { pid, fd, why: Some(why) })
}

fn kill(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let no_info = ptr::null::<libc::siginfo_t>();
    // SAFETY: integers and a null pointer, which the call allows.
    let sent = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), libc::SIGKILL, no_info, 0)
    };
    match Errno::result(sent) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Waits for the process to end; returns true if it has by `until`.
fn await_end(fd: BorrowedFd<'_>, until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(ready) => return ready > 0,
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

fn reap(fd: BorrowedFd<'_>) {
    // It has ended, so this does not block. ECHILD: other code has reaped it.
    let _ = waitid(Id::PIDFd(fd), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
}

fn open_pidfd(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: plain integers. The kernel sets close-on-exec.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the system call just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
