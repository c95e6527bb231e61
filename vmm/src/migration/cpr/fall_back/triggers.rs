//! The triggers of a fallback: a fatal signal, a panic, a deadline.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

use super::super::phases::Progress;
use super::alarm::{Alarm, TriggerError};
use super::{ALARM, downtime_limit, fall_back_if_armed};

/// The signals that a bug raises.
const FATAL: [Signal; 5] =
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGABRT, Signal::SIGILL, Signal::SIGFPE];

// SAFETY: timers and dispositions belong to the process, not to a thread.
unsafe impl Send for Triggers {}

/// The installed triggers. Dropping them restores the previous handlers and signal mask.
pub struct Triggers {
    before: Vec<(Signal, libc::sigaction)>,
    alarm: Alarm,
    hooked: Cell<bool>,
    /// The signals that were blocked before.
    mask: SigSet,
}

impl Triggers {
    /// Installs the signal handlers. [`set_deadline`](Self::set_deadline) sets the deadline.
    pub fn install() -> Result<Self, TriggerError> {
        let error = |call| move |errno| TriggerError { call, errno };
        let alarm = Alarm::new()?;
        let mut triggers =
            Self { before: Vec::new(), alarm, hooked: Cell::new(false), mask: SigSet::empty() };
        for signal in FATAL.into_iter().chain([ALARM]) {
            let before = set_handler(signal).map_err(error("sigaction"))?;
            triggers.before.push((signal, before));
        }
        // The parent may have blocked them.
        let wanted = SigSet::from_iter(FATAL.into_iter().chain([ALARM]));
        pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&wanted), Some(&mut triggers.mask))
            .map_err(error("sigprocmask"))?;
        Ok(triggers)
    }

    /// Makes dropping restore the alarm to its default action.
    pub fn alarm_was_default(&mut self) {
        for (_, before) in self.before.iter_mut().filter(|(signal, _)| *signal == ALARM) {
            before.sa_sigaction = libc::SIG_DFL;
        }
    }

    /// Makes a panic a trigger too, before it unwinds.
    pub fn hook_panics(&self) {
        self.hooked.set(true);
        std::panic::set_hook(Box::new(|info| {
            let said = info.payload_as_str().unwrap_or("no message");
            let (file, line) = info.location().map_or(("", 0), |at| (at.file(), at.line()));
            let after = Progress::now();
            fall_back_if_armed(format_args!("{after}it panicked at {file}:{line}: {said}"));
        }));
    }

    /// Falls back when this much time has passed; `None`: never.
    pub fn set_deadline(&mut self, after: Option<Duration>) -> Result<(), TriggerError> {
        self.alarm.set(after)
    }
}

impl Drop for Triggers {
    fn drop(&mut self) {
        // Before its signal gets its default action back.
        let _ = self.set_deadline(None);
        for (signal, before) in &self.before {
            // SAFETY: `before` is what `sigaction` returned.
            unsafe { libc::sigaction(*signal as i32, before, ptr::null_mut()) };
        }
        let ours = SigSet::from_iter(FATAL.into_iter().chain([ALARM]));
        let blocked: SigSet = ours.iter().filter(|signal| self.mask.contains(*signal)).collect();
        let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None);
        if self.hooked.get() {
            crate::logging::hook_panics();
        }
    }
}

fn set_handler(signal: Signal) -> Result<libc::sigaction, Errno> {
    let mut before = MaybeUninit::uninit();
    // SAFETY: all-zero is a valid `sigaction`; the handler does only what is async-signal-safe, on
    // the alternate stack that std gives each thread (a stack overflow is a fatal signal too).
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigfillset(&mut action.sa_mask);
        Errno::result(libc::sigaction(signal as i32, &action, before.as_mut_ptr()))?;
        Ok(before.assume_init())
    }
}

extern "C" fn on_signal(number: i32, info: *const libc::siginfo_t, _context: *const libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid pointer.
    if !is_own(unsafe { &*info }) || hand_over(number) {
        return;
    }
    let after = Progress::now();
    match Signal::try_from(number) {
        Ok(ALARM) => {
            fall_back_if_armed(format_args!("{after}{}", downtime_limit::name_of_deadline()))
        }
        Ok(signal @ (Signal::SIGSEGV | Signal::SIGBUS)) => {
            // SAFETY: the kernel gives a handler with SA_SIGINFO a valid pointer.
            let address = unsafe { (*info).si_addr() } as usize;
            fall_back_if_armed(format_args!("{after}it received {signal} at address {address:#x}"));
        }
        Ok(signal) => fall_back_if_armed(format_args!("{after}it received {signal}")),
        Err(_) => {}
    }
    // Not armed any more: do what would have happened without this handler.
    if number != ALARM as i32 {
        // SAFETY: the default disposition; the instruction or `abort` raises the signal again.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

/// Returns true for a fault, this process's timer, and signals from this process itself. A signal
/// from another process is no sign of a failure here.
fn is_own(info: &libc::siginfo_t) -> bool {
    const SI_TIMER: i32 = -2;
    // SAFETY: the kernel fills in this member for every signal that a process sends.
    let sender = || unsafe { info.si_pid() };
    info.si_code > 0 || info.si_code == SI_TIMER || sender() == crate::sys::process_id()
}

/// Forwards the deadline's signal to the main thread; returns true if it did.
fn hand_over(number: i32) -> bool {
    let Some(main) = super::plan().map(|plan| plan.main).filter(|_| number == ALARM as i32) else {
        return false;
    };
    // SAFETY: system calls on numbers.
    unsafe {
        let elsewhere = libc::syscall(libc::SYS_gettid) as libc::pid_t != main;
        if elsewhere {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), main, number);
        }
        elsewhere
    }
}
