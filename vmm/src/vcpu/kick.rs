//! Getting a vCPU thread out of `KVM_RUN`.
//!
//! The handler of the kick signal sets `immediate_exit` in the `kvm_run` of the thread it runs on:
//! whether the signal comes before, during or after the ioctl, the next or current `KVM_RUN` ends
//! with `EINTR` (KVM API, 5 "The kvm_run structure").

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use nix::errno::Errno;
use nix::sys::signal::SigSet;

thread_local! {
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

pub(super) fn signal_number() -> i32 {
    libc::SIGRTMIN()
}

extern "C" fn on_kick(_signal: i32) {
    IMMEDIATE_EXIT.with(|flag| {
        let flag = flag.get();
        if !flag.is_null() {
            // SAFETY: `Kickable` holds the mapping for as long as the pointer is set.
            unsafe { (*flag).store(1, Ordering::Relaxed) };
        }
    });
}

/// Installs the handler, and unblocks the signal for the threads that this one starts from now on:
/// the process that started the VMM may have blocked it.
pub fn install_kick_handler() -> Result<(), Errno> {
    // SAFETY: all-zero is a valid `sigaction`; the handler touches only a thread-local that needs
    // no initialisation and an atomic.
    let ret = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_kick as *const () as usize;
        // No SA_RESTART: KVM_RUN must return.
        libc::sigaction(signal_number(), &action, ptr::null_mut())
    };
    Errno::result(ret)?;
    signal_set().thread_unblock()
}

/// Lets a kick end the current thread's `KVM_RUN`, until dropped.
pub struct Kickable {
    flag: *const AtomicU8,
}

impl Kickable {
    /// Registers the vCPU that owns `run`, which must stay mapped until this is dropped.
    pub fn new(run: &mut kvm_run) -> Self {
        let flag = (&raw mut run.immediate_exit).cast::<AtomicU8>().cast_const();
        IMMEDIATE_EXIT.with(|slot| slot.set(flag));
        Self { flag }
    }

    /// Clears a kick that has been handled, or requests one at the next `KVM_RUN`.
    pub fn set(&self, immediate_exit: bool) {
        // SAFETY: the mapping is still there, see `new`.
        unsafe { (*self.flag).store(immediate_exit.into(), Ordering::Relaxed) };
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.with(|slot| slot.set(ptr::null()));
    }
}

/// Returns a set of only the kick signal, to block it.
pub fn signal_set() -> SigSet {
    // SAFETY: all-zero is a valid `sigset_t`, and the two calls write only to it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal_number());
        SigSet::from_sigset_t_unchecked(set)
    }
}

/// Sends the kick signal to the calling thread.
pub fn kick_self() -> Result<(), Errno> {
    // SAFETY: the thread that calls exists.
    match unsafe { libc::pthread_kill(libc::pthread_self(), signal_number()) } {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// Consumes one pending blocked signal of `set`; returns whether there was one.
pub fn take_pending(set: &SigSet) -> bool {
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both structures live for the call; no signal information is requested.
    unsafe { libc::sigtimedwait(set.as_ref(), ptr::null_mut(), &at_once) > 0 }
}

/// Sends the kick signal to `thread`, which may already have ended.
pub fn kick(thread: &JoinHandle<()>) {
    // SAFETY: the thread has not been joined, so its ID is valid.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), signal_number()) };
}
