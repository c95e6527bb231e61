//! The helper that holds the old address space while the new binary takes over.
//!
//! `execve` in a process that has a VM waits for the VM's teardown: RCU grace periods for the
//! irqchip, and the unmapping of all guest RAM. A second process that shares the address space
//! (`CLONE_VM`) and has a copy of the descriptor table keeps both alive, so that `execve` only lets
//! go of them. The helper sleeps; once the guest runs again it is killed, and the teardown takes
//! place in it. At the VMM's own priority: the guest's page faults are slow until it is over, and at
//! a lower one a guest that keeps every CPU busy would put that off for seconds.

use std::arch::asm;
use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid, getpid};

use super::stack::Stack;

/// System calls alone need little.
const STACK: usize = 16 << 10;

/// Why there is no helper. An update works without; it takes longer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("cannot start the helper that holds the old address space: {call}: {}", std::io::Error::from(*.errno))]
pub struct HelperError {
    call: &'static str,
    errno: Errno,
}

/// The helper, in the process that started it. Dropping it ends and reaps it.
#[derive(Debug)]
pub struct MmHelper {
    // Field order is drop order: it stands on the stack until its end.
    child: Child,
    _stack: Stack,
}

/// A child process, by a descriptor: its number may be another's as soon as it has ended, if
/// SIGCHLD is ignored (which is inherited). Dropping it ends and reaps it.
#[derive(Debug)]
struct Child {
    pid: Pid,
    fd: OwnedFd,
}

impl Child {
    fn kill(&self) {
        let no_info = ptr::null::<libc::siginfo_t>();
        let (fd, signal) = (self.fd.as_raw_fd(), libc::SIGKILL);
        // SAFETY: integers and a null pointer, which the call allows. ESRCH: it has ended already.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, no_info, 0) };
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        // ECHILD: it is gone already.
        while waitid(Id::PIDFd(self.fd.as_fd()), WaitPidFlag::WEXITED) == Err(Errno::EINTR) {}
    }
}

impl MmHelper {
    /// Starts the helper. Must be called on the main thread: the helper dies with the thread that
    /// started it, and of all threads only the main one outlives an exec.
    pub fn start() -> Result<Self, HelperError> {
        let error = |call| move |errno| HelperError { call, errno };
        let stack = Stack::map(STACK).map_err(error("mmap"))?;
        let top = stack.top();
        let parent = getpid().as_raw() as usize as *mut c_void;
        // A handler of ours that ran in the helper would run on our memory.
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))
            .map_err(error("sigprocmask"))?;
        let flags = libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD;
        let mut fd = -1;
        // SAFETY: `helper_main` keeps to the stack it is given and to system calls that touch no
        // memory; the stack outlives it (see `MmHelper`, or is lost with this address space).
        let pid =
            Errno::result(unsafe { libc::clone(helper_main, top, flags, parent, &raw mut fd) });
        let restored = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        let pid = Pid::from_raw(pid.map_err(error("clone"))?);
        // SAFETY: CLONE_PIDFD has just made this descriptor, close-on-exec.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let helper = Self { child: Child { pid, fd }, _stack: stack };
        restored.map_err(error("sigprocmask"))?;
        Ok(helper)
    }

    /// Its process ID.
    pub fn pid(&self) -> Pid {
        self.child.pid
    }
}

/// Runs in the helper, on memory that another process is using: no libc, which would write to the
/// thread-local `errno` of the thread that is running there.
extern "C" fn helper_main(parent: *mut c_void) -> i32 {
    raw_syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG.into(), libc::SIGKILL.into(), 0);
    // The parent may have died before the first call.
    while raw_syscall(libc::SYS_getppid, 0, 0, 0) == parent as i64 {
        raw_syscall(libc::SYS_pause, 0, 0, 0);
    }
    0
}

fn raw_syscall(number: i64, a: i64, b: i64, c: i64) -> i64 {
    let result;
    // SAFETY: the calls made here take integers only; the clobbers are those of the x86-64 ABI.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack, nomem),
        );
    }
    result
}

/// The helper that a previous process image of this process started. Dropping it ends and reaps
/// it.
#[derive(Debug)]
pub struct AdoptedHelper(Child);

impl AdoptedHelper {
    /// Takes it over; `None` where it is not a child of this process any more.
    pub fn adopt(pid: i32) -> Option<Self> {
        Self::adopt_by(pid, open_pidfd)
    }

    fn adopt_by(pid: i32, open: impl Fn(Pid) -> Result<OwnedFd, Errno>) -> Option<Self> {
        let pid = Pid::from_raw(pid);
        if pid.as_raw() <= 0 || !is_child(Id::Pid(pid)) {
            return None;
        }
        match open(pid) {
            // Once more: the number may have become another's before it was opened.
            Ok(fd) => is_child(Id::PIDFd(fd.as_fd())).then(|| Self(Child { pid, fd })),
            Err(errno) => {
                tracing::warn!(%errno, "cpr_helper_ended: there is no descriptor to watch it by");
                end(pid);
                None
            }
        }
    }

    /// Lets it go: it dies, and takes the old address space with it.
    pub fn release(&self) {
        self.0.kill();
    }

    /// Becomes readable when it has ended.
    pub fn ended(&self) -> &OwnedFd {
        &self.0.fd
    }
}

fn open_pidfd(pid: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: plain integers. The kernel sets close-on-exec.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the system call just returned this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn end(pid: Pid) {
    // ESRCH: somebody else has killed it; it still waits to be reaped.
    let _ = kill(pid, Signal::SIGKILL);
    while waitpid(pid, None) == Err(Errno::EINTR) {}
}

fn is_child(id: Id<'_>) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(id, flags).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_sleeps_and_is_reaped() {
        let helper = MmHelper::start().unwrap();
        let pid = helper.pid();
        assert!(is_child(Id::Pid(pid)));
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(
            status.contains("SigBlk:\tfffffffe7ffbfeff") || status.contains("SigBlk:\tffff"),
            "{status}"
        );
        drop(helper);
        assert!(!is_child(Id::Pid(pid)));
    }

    #[test]
    fn an_adopted_helper_ends_when_it_is_released() {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let started = std::mem::ManuallyDrop::new(MmHelper::start().unwrap());
        let helper = AdoptedHelper::adopt(started.pid().as_raw()).unwrap();
        helper.release();
        let mut fds = [PollFd::new(helper.ended().as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(10_000_u16)), Ok(1));
        drop(helper);
        assert!(!is_child(Id::Pid(started.pid())));
    }

    #[test]
    fn a_helper_that_cannot_be_watched_is_ended() {
        let started = std::mem::ManuallyDrop::new(MmHelper::start().unwrap());
        let pid = started.pid();
        assert!(AdoptedHelper::adopt_by(pid.as_raw(), |_| Err(Errno::EMFILE)).is_none());
        assert!(!is_child(Id::Pid(pid)));
    }

    #[test]
    fn a_stranger_is_not_adopted() {
        assert!(AdoptedHelper::adopt(1).is_none());
        assert!(AdoptedHelper::adopt(0).is_none());
        assert!(AdoptedHelper::adopt(-1).is_none());
    }
}
