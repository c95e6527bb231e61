//! Starts a program that dies with this one, without copying the address space: a fork would
//! write-protect it and stall the vCPUs.
//!
//! The parent does not wait for `execve` (no `CLONE_VFORK`): it can block forever on a file of a
//! server that is gone. A close-on-exec pipe reports that it has succeeded, or why it failed.

use std::ffi::{CString, c_char, c_void};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::{Pid, getpid, pipe2};

use crate::keeper::stack::Stack;
use crate::sys;

/// The highest signal number.
const LAST_SIGNAL: usize = 64;
/// Size of the kernel's signal set, in bytes.
const SIGNAL_SET: usize = LAST_SIGNAL / 8;
/// Size of the child's stack in bytes, with a margin for unoptimized builds.
const STACK: usize = 64 << 10;

/// A program to execute, with everything that the child uses before the exec.
#[derive(Debug)]
pub struct Call {
    /// The paths to try, in this order.
    pub candidates: Vec<CString>,
    /// Its arguments.
    pub argv: Vec<CString>,
    /// Its environment.
    pub environment: Vec<CString>,
    /// Pairs of source and target descriptor, moved in this order. A target must not be the source
    /// of a later pair.
    pub descriptors: Vec<(RawFd, RawFd)>,
}

/// What the child reads while this process continues.
struct Prepared {
    _call: Call,
    candidates: Vec<*const c_char>,
    argv: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    descriptors: Vec<(RawFd, RawFd)>,
    parent: i32,
    mask: libc::sigset_t,
    report: RawFd,
}

/// A child that has been started; it may not have executed its program yet.
pub struct Spawned {
    /// The process ID of the child.
    pub pid: Pid,
    /// Becomes readable when the child has ended.
    pub ended: OwnedFd,
    report: File,
    /// The memory that the child uses until it has executed its program or ended.
    ground: Option<(Box<Prepared>, Stack)>,
}

impl std::fmt::Debug for Spawned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spawned").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Spawned {
    /// Returns the descriptor to wait for until [`executed`](Self::executed) has a result.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.ground.is_some().then(|| self.report.as_fd())
    }

    /// Returns whether the program has been executed; `None`: not yet. A child that was killed
    /// before that counts as executed: its end reports the rest.
    pub fn executed(&mut self) -> Option<Result<(), Errno>> {
        self.ground.as_ref()?;
        let mut errno = [0; 4];
        match self.report.read(&mut errno) {
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                None
            }
            // The kernel closes the pipe after the switch to the new address space.
            Ok(0) | Err(_) => {
                self.ground = None;
                Some(Ok(()))
            }
            Ok(_) => Some(Err(Errno::from_raw(i32::from_ne_bytes(errno)))),
        }
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        while let Some(Err(_)) = self.executed() {}
        // The child may still be in `execve` and cannot be stopped: leak its memory rather than
        // unmap it.
        if let Some(ground) = self.ground.take() {
            std::mem::forget(ground);
        }
    }
}

/// Starts the program in a session of its own. It gets SIGKILL when this thread ends.
pub fn spawn(call: Call) -> Result<Spawned, Errno> {
    let stack = Stack::map(STACK)?;
    let (report, their_report) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let their_report = duplicate_off_targets(their_report, &call.descriptors)?;
    let mut before = SigSet::empty();
    // One of our handlers running in the child would work on our memory.
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    let prepared = Box::new(Prepared {
        candidates: pointers(&call.candidates),
        argv: pointers(&call.argv),
        environment: pointers(&call.environment),
        descriptors: call.descriptors.clone(),
        _call: call,
        parent: getpid().as_raw(),
        mask: *before.as_ref(),
        report: their_report.as_raw_fd(),
    });
    let flags = libc::CLONE_VM | libc::CLONE_PIDFD | libc::SIGCHLD;
    let argument = (&raw const *prepared).cast_mut().cast();
    let mut pidfd = -1;
    // SAFETY: the stack and `prepared` stay in place until the child has executed or ended
    // (`Spawned`); `child_main` only reads them and makes raw system calls only.
    let pid = unsafe { libc::clone(child_main, stack.top(), flags, argument, &raw mut pidfd) };
    let pid = Errno::result(pid).map(Pid::from_raw);
    // It fails only for an invalid `how`.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    let pid = pid?;
    // SAFETY: CLONE_PIDFD has just made this descriptor, close-on-exec.
    let ended = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Spawned { pid, ended, report: report.into(), ground: Some((prepared, stack)) })
}

/// Duplicates `fd`, if needed, to a number that is not the target of another descriptor.
pub fn duplicate_off_targets(
    fd: OwnedFd,
    descriptors: &[(RawFd, RawFd)],
) -> Result<OwnedFd, Errno> {
    match descriptors.iter().any(|(_, target)| *target == fd.as_raw_fd()) {
        // The duplicate is made while `fd` is open, so its number differs.
        true => duplicate_off_targets(
            fd.try_clone().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(0)))?,
            descriptors,
        ),
        false => Ok(fd),
    }
}

extern "C" fn child_main(prepared: *mut c_void) -> i32 {
    // SAFETY: see `spawn`; nothing writes to it.
    let prepared = unsafe { &*prepared.cast::<Prepared>() };
    let errno = match prepare(prepared) {
        Ok(()) => execute_raw(&prepared.candidates, &prepared.argv, &prepared.environment),
        Err(errno) => errno,
    } as i32;
    let arguments = [prepared.report as usize, (&raw const errno) as usize, size_of::<i32>(), 0, 0];
    // SAFETY: four bytes on this stack, which are only read. The pipe takes them at once or is
    // closed.
    let _ = unsafe { sys::call(libc::SYS_write, arguments) };
    127
}

/// The kernel's `struct sigaction` on x86-64.
#[repr(C)]
#[derive(Default)]
struct Disposition {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

fn prepare(prepared: &Prepared) -> Result<(), Errno> {
    // SAFETY: system calls on numbers, on structures on this stack, or on memory that is only read.
    // The dispositions belong to the child: they were copied (no CLONE_SIGHAND).
    unsafe {
        for signal in 1..=LAST_SIGNAL {
            let (mut now, default) = (Disposition::default(), Disposition::default());
            let now_at = (&raw mut now) as usize;
            let asked = sys::call(libc::SYS_rt_sigaction, [signal, 0, now_at, SIGNAL_SET, 0]);
            if asked.is_ok() && now.handler != libc::SIG_IGN {
                let default_at = (&raw const default) as usize;
                let _ = sys::call(libc::SYS_rt_sigaction, [signal, default_at, 0, SIGNAL_SET, 0]);
            }
        }
        let (option, signal) = (libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize);
        sys::call(libc::SYS_prctl, [option, signal, 0, 0, 0])?;
        if sys::call(libc::SYS_getppid, [0; 5])? != prepared.parent as usize {
            return Err(Errno::ESRCH);
        }
        sys::call(libc::SYS_setsid, [0; 5])?;
        for &(from, to) in &prepared.descriptors {
            let (from, to) = (from as usize, to as usize);
            match from == to {
                true => sys::call(libc::SYS_fcntl, [to, libc::F_SETFD as usize, 0, 0, 0])?,
                false => sys::call(libc::SYS_dup2, [from, to, 0, 0, 0])?,
            };
        }
        let (how, mask) = (libc::SIG_SETMASK as usize, (&raw const prepared.mask) as usize);
        sys::call(libc::SYS_rt_sigprocmask, [how, mask, 0, SIGNAL_SET, 0])?;
    }
    Ok(())
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Executes the first candidate that works, in this process. Returns only if none does.
pub fn execute(candidates: &[CString], argv: &[CString], environment: &[*const c_char]) -> Errno {
    let environment: Vec<_> = environment.iter().copied().chain([ptr::null()]).collect();
    execute_raw(&pointers(candidates), &pointers(argv), &environment)
}

/// Does the work of [`execute`]. The arrays end with a null.
fn execute_raw(
    candidates: &[*const c_char],
    argv: &[*const c_char],
    environment: &[*const c_char],
) -> Errno {
    let mut denied = false;
    let mut last = Errno::ENOENT;
    for candidate in candidates.iter().take_while(|candidate| !candidate.is_null()) {
        let arguments =
            [*candidate as usize, argv.as_ptr() as usize, environment.as_ptr() as usize, 0, 0];
        // SAFETY: the caller passes NUL-terminated strings and null-terminated arrays of such,
        // which live until the call returns or this program is replaced.
        last = match unsafe { sys::call(libc::SYS_execve, arguments) } {
            Ok(_) => return Errno::ENOEXEC,
            Err(errno) => errno,
        };
        match last {
            Errno::EACCES => denied = true,
            // Not found here: the next directory may have it.
            Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE | Errno::ENODEV | Errno::ETIMEDOUT => {}
            _ => return last,
        }
    }
    // A file that may not be executed is more informative than its absence elsewhere.
    if denied { Errno::EACCES } else { last }
}
