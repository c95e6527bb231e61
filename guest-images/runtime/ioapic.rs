//! The IOAPIC.

use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

const SELECT: usize = 0xfec0_0000;
const WINDOW: usize = 0xfec0_0010;
const REDIRECTION: u32 = 0x10;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

/// How a pin asserts itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// By going up.
    Edge,
    /// By being up.
    Level,
}

/// Selects the register that the window shows.
pub fn select(register: u32) {
    // SAFETY: the chip's page is mapped and nothing else; none of its registers makes it write to
    // memory.
    unsafe { with_exposed_provenance_mut::<u32>(SELECT).write_volatile(register) };
}

/// The register that is selected.
pub fn selected() -> u32 {
    // SAFETY: as above; to read it changes nothing.
    unsafe { with_exposed_provenance::<u32>(SELECT).read_volatile() }
}

/// Writes a register.
pub fn write(register: u32, value: u32) {
    select(register);
    // SAFETY: as above.
    unsafe { with_exposed_provenance_mut::<u32>(WINDOW).write_volatile(value) };
}

/// Reads a register.
pub fn read(register: u32) -> u32 {
    select(register);
    // SAFETY: as above.
    unsafe { with_exposed_provenance::<u32>(WINDOW).read_volatile() }
}

/// Sends the pin's interrupts to the vCPU with that APIC ID, with that vector.
pub fn route(pin: u8, vector: u8, trigger: Trigger, cpu: usize) {
    let entry = REDIRECTION + 2 * u32::from(pin);
    write(entry + 1, (cpu as u32) << 24);
    write(entry, u32::from(vector) | if trigger == Trigger::Level { LEVEL } else { 0 });
}

/// Keeps the pin's interrupts back.
pub fn mask(pin: u8) {
    write(REDIRECTION + 2 * u32::from(pin), MASKED);
}
