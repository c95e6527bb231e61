//! Access to the IOAPIC.

use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

const SELECT: usize = 0xfec0_0000;
const WINDOW: usize = 0xfec0_0010;
const REDIRECTION: u32 = 0x10;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

/// How a pin triggers interrupts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// On a rising edge.
    Edge,
    /// While the line is high.
    Level,
}

/// Selects the register that the window shows.
pub fn select(register: u32) {
    // SAFETY: the page is mapped and belongs to the chip alone; no register makes it write to
    // memory.
    unsafe { with_exposed_provenance_mut::<u32>(SELECT).write_volatile(register) };
}

/// The selected register.
pub fn selected() -> u32 {
    // SAFETY: as above; reading it has no side effect.
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

/// Routes the pin's interrupts to the vCPU with APIC ID `cpu`, with this vector.
pub fn route(pin: u8, vector: u8, trigger: Trigger, cpu: usize) {
    let entry = REDIRECTION + 2 * u32::from(pin);
    write(entry + 1, (cpu as u32) << 24);
    write(entry, u32::from(vector) | if trigger == Trigger::Level { LEVEL } else { 0 });
}

/// Masks the pin.
pub fn mask(pin: u8) {
    write(REDIRECTION + 2 * u32::from(pin), MASKED);
}
