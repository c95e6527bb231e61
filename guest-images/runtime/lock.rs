//! A lock that has heartbeats while it waits.

use core::cell::UnsafeCell;
use core::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Relaxed, Release},
};

use super::Cpu;
use super::arch::pause;

/// A value that only one vCPU at a time can access.
pub struct Lock<T> {
    is_held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `with` gives access to one vCPU at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// A lock that no vCPU holds.
    pub const fn new(value: T) -> Self {
        Self { is_held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Waits for the lock, with heartbeats, and passes the value to `act`.
    pub fn with(&self, cpu: &mut Cpu, act: impl FnOnce(&mut T, &mut Cpu)) {
        while self.is_held.compare_exchange_weak(false, true, Acquire, Relaxed).is_err() {
            pause();
            cpu.tick();
        }
        // SAFETY: this vCPU has set `is_held`, and clears it after the reference is gone.
        act(unsafe { &mut *self.value.get() }, cpu);
        self.is_held.store(false, Release);
    }
}
