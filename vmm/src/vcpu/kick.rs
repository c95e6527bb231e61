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

thread_local! {
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

fn signal_number() -> i32 {
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

/// Installs the handler; before any vCPU thread starts.
pub fn install_kick_handler() -> Result<(), Errno> {
    // SAFETY: all-zero is a valid `sigaction`; the handler touches only a thread-local that needs
    // no initialisation and an atomic.
    let ret = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_kick as *const () as usize;
        // No SA_RESTART: the point is that KVM_RUN comes back.
        libc::sigaction(signal_number(), &action, ptr::null_mut())
    };
    Errno::result(ret).map(drop)
}

/// Marks the current thread as one whose `KVM_RUN` a kick ends, until dropped.
pub struct Kickable {
    flag: *const AtomicU8,
}

impl Kickable {
    /// For the vCPU that owns `run`; it must stay mapped until this is dropped.
    pub fn new(run: &mut kvm_run) -> Self {
        let flag = (&raw mut run.immediate_exit).cast::<AtomicU8>().cast_const();
        IMMEDIATE_EXIT.with(|slot| slot.set(flag));
        Self { flag }
    }

    /// Clears a kick that has been noticed, or asks for one at the next `KVM_RUN`.
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

/// Sends the kick signal; a thread that has ended already is fine.
pub fn kick(thread: &JoinHandle<()>) {
    // SAFETY: the thread has not been joined, so its ID is valid.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), signal_number()) };
}
