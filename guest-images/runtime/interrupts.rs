//! Interrupts as a body sees them: counted by the shim, per vCPU and vector.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use super::mailbox::MAX_CPUS;
use super::shim::{self, MODE_EOI};

unsafe extern "C" {
    static interrupt_counts: [[AtomicU64; 256]; MAX_CPUS];
    static interrupt_modes: [AtomicU8; 256];
}

/// Who tells the interrupt controller that an interrupt is over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Eoi {
    /// The handler, to the LAPIC, at once.
    Lapic,
    /// The body, whenever it likes; or nobody, for an NMI.
    Body,
}

/// From now on interrupts of this vector are counted. Before, they are damage.
pub fn expect(vector: u8, eoi: Eoi) {
    let mode = match eoi {
        Eoi::Lapic => MODE_EOI,
        Eoi::Body => MODE_EOI + 1,
    };
    // SAFETY: a table of the shim, accessed through atomics and by its handler.
    let modes = unsafe { &interrupt_modes };
    modes[usize::from(vector)].store(mode, Relaxed);
}

/// How often the vector has come on this vCPU.
pub fn count(vector: u8) -> u64 {
    count_on(shim::cpu_index(), vector)
}

/// How often the vector has come on that vCPU.
pub fn count_on(cpu: usize, vector: u8) -> u64 {
    // SAFETY: a table of the shim, accessed through atomics and by its handler.
    let counts = unsafe { &interrupt_counts };
    counts[cpu][usize::from(vector)].load(Relaxed)
}
