//! The keeper as a child process: ending it, and finding it again after exec.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::sys;

/// How long to wait for a killed keeper to end. It executes nothing but the teardown of the old
/// address space.
const PATIENCE: Duration = Duration::from_secs(20);

/// A child process, referred to by a pidfd: its number may be reused as soon as it has ended, if
/// SIGCHLD is ignored (which is inherited). Dropping it ends and reaps the process.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    fd: OwnedFd,
}

impl Child {
    /// Wraps the child `pid`, whose pidfd is `fd`.
    pub(super) fn new(pid: Pid, fd: OwnedFd) -> Self {
        Self { pid, fd }
    }

    /// Returns the process ID.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Returns the pidfd, which becomes readable when the child has ended.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sends SIGKILL to the child.
    pub fn kill(&self) {
        send_kill(self.fd.as_raw_fd());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        if !sys::readable_within(self.fd.as_raw_fd(), PATIENCE.as_millis() as u32) {
            return tracing::error!(pid = self.pid.as_raw(), "keeper_does_not_end");
        }
        // ECHILD: it was reaped already. It has ended, so this does not block.
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        while waitid(Id::PIDFd(self.fd.as_fd()), flags) == Err(Errno::EINTR) {}
    }
}

/// Sends SIGKILL to the process of a pidfd. Async-signal-safe.
pub(super) fn send_kill(fd: i32) {
    let no_info = ptr::null::<libc::siginfo_t>() as usize;
    let arguments = [fd as usize, libc::SIGKILL as usize, no_info, 0, 0, 0];
    // SAFETY: integers and a null pointer, which the call allows. ESRCH: it has ended already.
    let _ = unsafe { sys::call(libc::SYS_pidfd_send_signal, arguments) };
}

/// Opens a pidfd, close-on-exec.
pub(super) fn open_pidfd(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: plain integers. The kernel sets close-on-exec.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the system call just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// The keeper that a previous process image of this process started. Dropping it ends and reaps it.
#[derive(Debug)]
pub struct AdoptedKeeper(Child);

impl AdoptedKeeper {
    /// Takes over the keeper; `None` if it is no longer a child of this process.
    pub fn adopt(pid: i32) -> Option<Self> {
        Self::adopt_by(pid, open_pidfd)
    }

    fn adopt_by(pid: i32, open: impl Fn(Pid) -> Result<OwnedFd, Errno>) -> Option<Self> {
        let pid = Pid::from_raw(pid);
        if pid.as_raw() <= 0 || !is_child(Id::Pid(pid)) {
            return None;
        }
        match open(pid) {
            // Checked again: the number may have been reused before it was opened.
            Ok(fd) => is_child(Id::PIDFd(fd.as_fd())).then(|| Self(Child::new(pid, fd))),
            Err(errno) => {
                tracing::warn!(%errno, "keeper_ended: cannot open a pidfd to watch it");
                end(pid);
                None
            }
        }
    }

    /// Kills the keeper, which takes the old address space with it.
    pub fn release(&self) {
        self.0.kill();
    }

    /// Returns the pidfd, which becomes readable when the keeper has ended.
    pub fn ended(&self) -> &OwnedFd {
        &self.0.fd
    }
}

fn end(pid: Pid) {
    // ESRCH: it was killed already, but is not reaped yet.
    let _ = kill(pid, Signal::SIGKILL);
    let until = std::time::Instant::now() + PATIENCE;
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while std::time::Instant::now() < until {
        match waitid(Id::Pid(pid), flags) {
            Ok(nix::sys::wait::WaitStatus::StillAlive) => std::thread::yield_now(),
            Err(Errno::EINTR) => {}
            Ok(_) => {
                let _ = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
                return;
            }
            Err(_) => return,
        }
    }
}

/// Returns whether the child `pid` exists and has not ended. Async-signal-safe.
pub fn is_watching(pid: i32) -> bool {
    if pid <= 0 {
        return false;
    }
    // SAFETY: all-zero is a valid structure, which the call fills.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        let arguments =
            [libc::P_PID as usize, pid as usize, (&raw mut info) as usize, flags as usize, 0, 0];
        sys::call(libc::SYS_waitid, arguments).is_ok() && info.si_pid() == 0
    }
}

pub(super) fn is_child(id: Id<'_>) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(id, flags).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a child that sleeps until it is killed.
    fn child() -> Pid {
        // SAFETY: the child calls nothing but what is async-signal-safe.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Parent { child } => child,
            nix::unistd::ForkResult::Child => loop {
                nix::unistd::pause();
            },
        }
    }

    #[test]
    fn an_adopted_keeper_ends_when_it_is_released() {
        let pid = child();
        let keeper = AdoptedKeeper::adopt(pid.as_raw()).unwrap();
        keeper.release();
        assert!(sys::readable_within(keeper.ended().as_raw_fd(), 10_000));
        drop(keeper);
        assert!(!is_child(Id::Pid(pid)));
    }

    #[test]
    fn keeper_without_pidfd_is_killed() {
        let pid = child();
        assert!(AdoptedKeeper::adopt_by(pid.as_raw(), |_| Err(Errno::EMFILE)).is_none());
        assert!(!is_child(Id::Pid(pid)));
    }

    #[test]
    fn only_a_child_is_adopted() {
        for pid in [1, 0, -1] {
            assert!(AdoptedKeeper::adopt(pid).is_none());
        }
    }
}
