//! A lock that keeps the heart beating.

use core::cell::UnsafeCell;
use core::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Relaxed, Release},
};

use super::Cpu;
use super::arch::pause;

/// A value that one vCPU at a time has.
pub struct Lock<T> {
    is_held: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `with` gives the value to one vCPU at a time.
unsafe impl<T: Send> Sync for Lock<T> {}

impl<T> Lock<T> {
    /// Nobody has it.
    pub const fn new(value: T) -> Self {
        Self { is_held: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Waits for it, with heartbeats, and hands it to `act`.
    pub fn with(&self, cpu: &mut Cpu, act: impl FnOnce(&mut T, &mut Cpu)) {
        while self.is_held.compare_exchange_weak(false, true, Acquire, Relaxed).is_err() {
            pause();
            cpu.tick();
        }
        // SAFETY: this vCPU has set `is_held`, and clears it when the reference is gone.
        act(unsafe { &mut *self.value.get() }, cpu);
        self.is_held.store(false, Release);
    }
}
