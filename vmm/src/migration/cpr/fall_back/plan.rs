//! Going back, prepared while there is time: what is left to do may be done in a signal handler.

use std::ffi::{CString, c_char};
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::SigSet;

use super::super::state::ENV_NAME;
use super::record::{Record, strings};
use super::stranded::{Kept, strand};
use super::text::Variable;
use super::{ALARM, FAILED_NAME, FAILED_SIZE};
use crate::end_signals::END_SIGNALS;
use crate::logging::LOG_FD;
use crate::migration::cpr::update::SAVED_FD;

/// Which try this process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// The new binary: if it fails, the old one goes on.
    New,
    /// The old binary again, after this failure of the new one: if it fails too, nobody goes on.
    Returned(String),
}

/// A descriptor that the old binary needs under its number, whatever happens to that meanwhile.
struct Crossing {
    fd: RawFd,
    /// A duplicate; -1 as long as there is none and `fd` is untouched.
    reserve: AtomicI32,
}

/// Everything that going back takes.
pub struct Plan {
    role: Role,
    /// Only this thread goes back: children, and the signal at its parent's death, are its own.
    pub main: libc::pid_t,
    /// Why; part of the environment.
    pub why: Box<Variable<FAILED_SIZE>>,
    binary: RawFd,
    argv: Strings,
    environment: Strings,
    mask: libc::sigset_t,
    crossing: Vec<Crossing>,
    kept: Kept,
}

// SAFETY: `why` is written by the one thread that has claimed the fall-back (`super::CLAIMED`) and
// read after that; the pointers lead into strings of its own, which nobody else changes.
unsafe impl Sync for Plan {}

struct Strings {
    _owned: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl Strings {
    fn new(owned: Vec<CString>, last: Option<*const c_char>) -> Self {
        let pointers = owned.iter().map(|s| s.as_ptr()).chain(last).chain([ptr::null()]).collect();
        Self { _owned: owned, pointers }
    }
}

impl Plan {
    /// The way back that `record` describes.
    pub fn new(record: &Record, role: Role) -> Self {
        let state = CString::new(format!("{ENV_NAME}={}", record.state)).expect("it has no NUL");
        let ours = [ENV_NAME, FAILED_NAME].map(|name| format!("{name}="));
        let foreign =
            |entry: &CString| !ours.iter().any(|n| entry.to_bytes().starts_with(n.as_bytes()));
        let mut environment = vec![state];
        environment.extend(strings(&record.environment).into_iter().filter(foreign));
        let why = Box::new(Variable::new(FAILED_NAME));
        let environment = Strings::new(environment, Some(why.as_ptr()));
        let crossing = |fd| Crossing { fd, reserve: AtomicI32::new(-1) };
        let named = |wanted: &str| record.fds.iter().find(|n| n.name == wanted).map(|n| n.fd);
        Self {
            role,
            main: nix::unistd::gettid().as_raw(),
            why,
            binary: record.binary,
            argv: Strings::new(strings(&record.argv), None),
            environment,
            mask: held_mask(record),
            crossing: record.numbers().map(crossing).collect(),
            kept: Kept {
                pid: record.pid,
                helper: record.helper,
                ram: record
                    .fds
                    .iter()
                    .filter(|n| n.name.starts_with("ram."))
                    .map(|n| n.fd)
                    .collect(),
                saved: named(SAVED_FD),
                log: named(LOG_FD),
            },
        }
    }

    /// Duplicates every descriptor, so that closing one closes nothing that is needed: by its number
    /// if that is `live`, otherwise what `before` has of it, as the number may be another's by now.
    pub fn reserve(
        &self,
        before: Option<&Self>,
        live: impl Fn(RawFd) -> bool,
    ) -> Result<(), (RawFd, Errno)> {
        for Crossing { fd, reserve } in &self.crossing {
            let earlier = before.filter(|_| !live(*fd)).and_then(|before| before.reserved(*fd));
            let source = earlier.unwrap_or(*fd);
            // SAFETY: a number that is not open gives EBADF.
            let borrowed = unsafe { BorrowedFd::borrow_raw(source.max(0)) };
            match fcntl(borrowed, FcntlArg::F_DUPFD_CLOEXEC(3)) {
                Ok(copy) => reserve.store(copy, Ordering::Relaxed),
                Err(errno) => {
                    self.release();
                    return Err((*fd, errno));
                }
            }
        }
        Ok(())
    }

    fn reserved(&self, fd: RawFd) -> Option<RawFd> {
        let crossing = self.crossing.iter().find(|crossing| crossing.fd == fd)?;
        Some(crossing.reserve.load(Ordering::Relaxed)).filter(|reserve| *reserve >= 0)
    }

    /// Closes the duplicates.
    pub fn release(&self) {
        for Crossing { reserve, .. } in &self.crossing {
            let reserve = reserve.swap(-1, Ordering::Relaxed);
            if reserve >= 0 {
                // SAFETY: `reserve` made this descriptor, and nobody else knows its number.
                unsafe { libc::close(reserve) };
            }
        }
    }

    /// Makes this process what it was, or at least keeps the guest. On the main thread, in a signal
    /// handler or not: nothing here allocates, locks or unwinds.
    pub fn go(&self) -> ! {
        #[cfg(feature = "failpoints")]
        crate::failpoints::relieve();
        // SAFETY: system calls on numbers that stay what they are, and on a mask of our own.
        unsafe {
            libc::sigprocmask(libc::SIG_SETMASK, &self.mask, ptr::null_mut());
            for Crossing { fd, reserve } in &self.crossing {
                match reserve.load(Ordering::Relaxed) {
                    -1 => libc::fcntl(*fd, libc::F_SETFD, 0),
                    reserve => libc::dup2(reserve, *fd),
                };
            }
        }
        // SAFETY: it was written by whoever claimed the fall-back, before this was called.
        let why = unsafe { self.why.value() };
        match &self.role {
            Role::New => {
                let errno = self.execute();
                strand(&self.kept, why, format_args!("executing the old binary: {}", errno.desc()))
            }
            Role::Returned(first) => strand(&self.kept, first, format_args!("{why}")),
        }
    }

    fn execute(&self) -> Errno {
        // SAFETY: all are NUL-terminated strings or null-terminated arrays of such, which live
        // until the call returns or this program is gone. Ignoring the alarm discards one that is
        // pending, which nobody would handle.
        unsafe {
            libc::signal(ALARM as i32, libc::SIG_IGN);
            libc::syscall(
                libc::SYS_execveat,
                self.binary,
                c"".as_ptr(),
                self.argv.pointers.as_ptr(),
                self.environment.pointers.as_ptr(),
                libc::AT_EMPTY_PATH,
            )
        };
        Errno::last()
    }
}

/// The signals that ask the VMM to end wait until the old binary has its handlers again.
fn held_mask(record: &Record) -> libc::sigset_t {
    let mut mask = record.mask();
    mask.extend(END_SIGNALS);
    *SigSet::as_ref(&mask)
}
