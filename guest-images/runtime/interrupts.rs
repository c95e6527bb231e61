//! Interrupts for the body of a guest: the shim counts them per vCPU and vector.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use super::mailbox::MAX_CPUS;
use super::shim::{self, MODE_EOI};

unsafe extern "C" {
    static interrupt_counts: [[AtomicU64; 256]; MAX_CPUS];
    static interrupt_modes: [AtomicU8; 256];
}

/// Which code signals the end of an interrupt to the interrupt controller.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Eoi {
    /// The handler, immediately, to the LAPIC.
    Lapic,
    /// The body, at any later time; or no code, for an NMI.
    Body,
}

/// Makes the shim count interrupts of this vector; until then they are damage.
pub fn expect(vector: u8, eoi: Eoi) {
    let mode = match eoi {
        Eoi::Lapic => MODE_EOI,
        Eoi::Body => MODE_EOI + 1,
    };
    // SAFETY: a table of the shim, accessed through atomics and by its handler.
    let modes = unsafe { &interrupt_modes };
    modes[usize::from(vector)].store(mode, Relaxed);
}

/// How many interrupts of this vector this vCPU has received.
pub fn count(vector: u8) -> u64 {
    count_on(shim::cpu_index(), vector)
}

/// How many interrupts of this vector vCPU `cpu` has received.
pub fn count_on(cpu: usize, vector: u8) -> u64 {
    // SAFETY: a table of the shim, accessed through atomics and by its handler.
    let counts = unsafe { &interrupt_counts };
    counts[cpu][usize::from(vector)].load(Relaxed)
}
