//! INTx: level-triggered interrupt lines, which functions share.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::VmFd;

/// The inputs of the IOAPIC that INTA of the slots goes to, in turns; no PIC has them.
pub const LINES: [u32; 4] = [16, 17, 18, 19];

/// The lines of a machine.
#[derive(Debug)]
pub struct IntxLines {
    vm: Arc<VmFd>,
    /// For each line, the slots that assert it.
    asserted: Mutex<[u32; LINES.len()]>,
}

impl IntxLines {
    /// Creates the lines, which nothing asserts.
    pub fn new(vm: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self { vm, asserted: Mutex::default() })
    }
}

/// INTA of one slot.
#[derive(Debug)]
pub struct Intx {
    lines: Arc<IntxLines>,
    slot: u8,
}

impl Intx {
    /// Returns the pin of `slot`.
    pub fn new(lines: Arc<IntxLines>, slot: u8) -> Self {
        Self { lines, slot }
    }

    /// The index of the slot's line in [`LINES`].
    pub fn index(slot: u8) -> usize {
        usize::from(slot) % LINES.len()
    }

    /// Sets the pin's level; the line is asserted as long as any of its pins is.
    pub fn set(&self, level: bool) {
        let mut asserted = self.lines.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, bit) = (Self::index(self.slot), 1 << self.slot);
        let slots = &mut asserted[index];
        *slots = if level { *slots | bit } else { *slots & !bit };
        let (line, level) = (LINES[index], *slots != 0);
        if let Err(error) = self.lines.vm.set_irq_line(line, level) {
            tracing::warn!(line, level, %error, "interrupt_failed");
        }
    }
}
