//! Reads every device register that can be read without a side effect, round by round.
//!
//! First it writes seeded values, none of them a default, to all registers that can be written, so
//! that a register that is reset to its power-on value is detected. vCPU 0 reads the board, each
//! vCPU its LAPIC and MSRs. All interrupts are masked, so none is delivered. Marker n comes after
//! 10 n rounds of vCPU 0.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use runtime::arch::{inb, inl, outb, outl};
use runtime::damage::verify;
use runtime::words::Words;
use runtime::{Cpu, cpl0, ioapic, lapic};

const ROUNDS_PER_MARKER: u32 = 10;
/// The maximum number of readings, larger than any vCPU needs.
const MOST: usize = 320;

const UART: u16 = 0x3f8;
const DIVISOR_LATCH: u8 = 0x80;
const PIC_COMMANDS: [u16; 2] = [0x20, 0xa0];
const LEVELS: [u16; 2] = [0x4d0, 0x4d1];
/// The inputs whose trigger mode can be set.
const LEVELS_FREE: [u8; 2] = [0xf8, 0xde];
/// Index and data of the real-time clock (data sheet of the MC146818).
const CLOCK: u16 = 0x70;
const CLOCK_B: u8 = 11;
/// Holds the clock while it is set.
const CLOCK_SET: u8 = 0x80;
/// Binary or decimal digits, and hours of whole or half days.
const CLOCK_FORMAT: u8 = 6;
const CLOCK_ALARM: [u8; 3] = [1, 3, 5];
/// 2042-06-15 05:00:00 as digits: in the other format a valid time as well. The registers that do
/// not change within 12 hours come last.
const CLOCK_TIME: [(u8, u8); 7] =
    [(0, 0), (2, 0), (4, 0x05), (0x32, 0x20), (9, 0x42), (8, 0x06), (7, 0x15)];
const CLOCK_DATE: [u8; 4] = [0x32, 9, 8, 7];
/// Register A without its announcement of updates.
const CLOCK_A_FREE: u8 = 0x7f;
/// Memory without a meaning on any PC.
const CLOCK_MEMORY: core::ops::Range<u8> = 0x40..0x60;
/// Bytes of ACPI's PM1 registers that can be written without an effect, with their free bits: the
/// power button's enable bit, the sleep type. A VMM without them reads as all ones.
const POWER_WRITABLE: [(u16, u8); 2] = [(0x603, 0x01), (0x605, 0x1c)];
const POWER: core::ops::Range<u16> = 0x600..0x606;
const PIT: u16 = 0x40;
const PIT_COMMAND: u16 = 0x43;
/// Read-back of the status, not of the count, of all three channels (8254 data sheet).
const PIT_STATUS: u8 = 0xee;
/// The output and null-count bits, which change with time.
const PIT_MOVES: u8 = 0xc0;
const SYSTEM_CONTROL: u16 = 0x61;
/// The gate and speaker bits; the others change with time or are read-only.
const SYSTEM_CONTROL_FREE: u8 = 3;
const PCI_ADDRESS: u16 = 0xcf8;
const PCI_DATA: u16 = 0xcfc;
const PCI_ENABLE: u32 = 1 << 31;
const PCI_DEVICES: u32 = 32;

const IOAPIC_PINS: u32 = 24;
const IOAPIC_ENTRIES: u32 = 0x10;
const MASKED: u32 = 1 << 16;
/// Vector, destination mode, polarity and trigger mode of a redirection entry or local vector.
const ENTRY_FREE: u32 = 0xa8ff;
/// The first vector after those reserved for exceptions.
const LOWEST_VECTOR: u32 = 0x20;

/// The LAPIC registers that can be written without a side effect, with their free and their set
/// bits: all local vectors stay masked, and the spurious-vector register enables the LAPIC.
const LAPIC_WRITABLE: [(u64, u32, u32); 11] = [
    (0x80, 0xf0, 0),
    (0xd0, 0xff00_0000, 0),
    (0xf0, 0x8f, 0x170),
    (0x310, 0xff00_0000, 0),
    (0x320, 0x2_008f, MASKED | 0x70),
    (0x330, 0x8f, MASKED | 0x70),
    (0x340, 0x8f, MASKED | 0x70),
    (0x350, 0x208f, MASKED | 0x70),
    (0x360, 0x208f, MASKED | 0x70),
    (0x370, 0x8f, MASKED | 0x70),
    (0x3e0, 0xb, 0),
];
/// The LAPIC registers to read: all but the current count and the requested interrupts.
const LAPIC_READABLE: [u64; 35] = [
    0x20, 0x30, 0x80, 0xd0, 0xe0, 0xf0, 0x100, 0x110, 0x120, 0x130, 0x140, 0x150, 0x160, 0x170, 0x180,
    0x190, 0x1a0, 0x1b0, 0x1c0, 0x1d0, 0x1e0, 0x1f0, 0x280, 0x300, 0x310, 0x320, 0x330, 0x340, 0x350,
    0x360, 0x370, 0x380, 0x3e0, 0x90, 0xa0,
];

/// The valid memory types (SDM volume 3, chapter "Memory Cache Control").
const MEMORY_TYPES: [u64; 5] = [0, 1, 4, 5, 6];
const PAT: u32 = 0x277;
const MTRR_VARIABLE: u32 = 0x200;
const MTRR_VARIABLES: u32 = 16;
const MTRR_VALID: u64 = 1 << 11;
/// The bits of a range's address; it must be within the physical address width.
const MTRR_ADDRESS: u64 = 0xf_ffff_f000;
/// Other MSRs: fixed and default MTRRs; SYSENTER, SYSCALL, bases; TSC_AUX; those set by firmware.
const MSRS: [u32; 33] = [
    0x1b, 0x3a, 0x48, 0x8b, 0xce, 0xfe, 0x140, 0x174, 0x175, 0x176, 0x179, 0x17a, 0x17b, 0x1a0, 0x1d9,
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff, 0xc000_0080,
    0xc000_0081, 0xc000_0082, 0xc000_0084, 0xc000_0102, 0xc000_0103,
];
/// The value that stands for a missing MSR.
const NO_MSR: u64 = 0xdead_0000_0000_dead;
const DEBUG_REGISTERS: usize = 6;

/// A sequence of values generated from the seed.
struct Seeded {
    words: Words,
    cpu: u64,
    count: u64,
}

impl Seeded {
    fn of(cpu: &Cpu) -> Self {
        Self { words: Words::new(cpu.options().seed), cpu: cpu.index() as u64, count: 0 }
    }

    fn next(&mut self) -> u64 {
        self.count += 1;
        self.words.first(self.cpu << 12, self.count)
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn memory_type(&mut self) -> u64 {
        MEMORY_TYPES[self.next() as usize % MEMORY_TYPES.len()]
    }
}

fn prepare(cpu: &mut Cpu) {
    let seeded = &mut Seeded::of(cpu);
    if cpu.index() == 0 {
        set_uart(seeded);
        set_pics(seeded);
        set_pit(seeded);
        set_clock(seeded);
        for (port, free) in POWER_WRITABLE {
            outb(port, seeded.byte() & free);
        }
        set_ioapic(seeded);
    }
    for (register, free, set) in LAPIC_WRITABLE {
        lapic::write(register, seeded.next() as u32 & free | set);
    }
    set_msrs(seeded);
}

fn set_uart(seeded: &mut Seeded) {
    outb(UART + 3, DIVISOR_LATCH);
    outb(UART, seeded.byte() | 1);
    outb(UART + 1, seeded.byte());
    // No break, which a terminal would see.
    outb(UART + 3, seeded.byte() & 0x3f);
    outb(UART + 1, seeded.byte() & 0xf);
    // Without loopback, which would change the modem status.
    outb(UART + 4, seeded.byte() & 0xf);
    outb(UART + 7, seeded.byte());
}

fn set_pics(seeded: &mut Seeded) {
    for (n, command) in PIC_COMMANDS.into_iter().enumerate() {
        outb(command, 0x11);
        outb(command + 1, seeded.byte() & 0xf8 | LOWEST_VECTOR as u8);
        outb(command + 1, [4, 2][n]);
        outb(command + 1, 1);
        outb(command + 1, 0xff);
        outb(LEVELS[n], seeded.byte() & LEVELS_FREE[n]);
        // From now on, reading the command port returns the in-service register.
        outb(command, 0xb);
    }
}

fn set_pit(seeded: &mut Seeded) {
    // Modes 2 and 3 for channel 0, which is wired to an input; both bytes, binary or BCD.
    for (channel, modes) in [(0, [2, 3]), (1, [2, 3]), (2, [0, 3])] {
        let mode = modes[seeded.next() as usize % 2];
        let bcd = seeded.byte() & 1;
        outb(PIT_COMMAND, channel << 6 | 0x30 | mode << 1 | bcd);
        // A BCD digit is at most 9.
        outb(PIT + u16::from(channel), seeded.byte() & 0x77);
        outb(PIT + u16::from(channel), seeded.byte() & 0x77 | 0x10);
    }
    outb(SYSTEM_CONTROL, seeded.byte() & SYSTEM_CONTROL_FREE);
}

fn set_clock(seeded: &mut Seeded) {
    let format = seeded.byte() & CLOCK_FORMAT;
    write_clock(CLOCK_B, format | CLOCK_SET);
    for (register, value) in CLOCK_TIME {
        write_clock(register, value);
    }
    write_clock(CLOCK_B, format);
    for register in CLOCK_ALARM.into_iter().chain(CLOCK_MEMORY) {
        write_clock(register, seeded.byte());
    }
}

fn write_clock(register: u8, value: u8) {
    outb(CLOCK, register);
    outb(CLOCK + 1, value);
}

fn set_ioapic(seeded: &mut Seeded) {
    ioapic::write(0, (seeded.next() as u32 & 0xf) << 24);
    for pin in 0..IOAPIC_PINS {
        let entry = IOAPIC_ENTRIES + 2 * pin;
        ioapic::write(entry + 1, (seeded.next() as u32) << 24);
        ioapic::write(entry, seeded.next() as u32 & ENTRY_FREE | LOWEST_VECTOR | MASKED);
    }
    // The selection is a register, too.
    ioapic::select(IOAPIC_ENTRIES + seeded.next() as u32 % IOAPIC_PINS);
}

fn set_msrs(seeded: &mut Seeded) {
    for pair in 0..MTRR_VARIABLES / 2 {
        let base = MTRR_VARIABLE + 2 * pair;
        // An MSR that is missing or rejects the value is only read.
        let _ = cpl0::wrmsr(base, seeded.next() & MTRR_ADDRESS | seeded.memory_type());
        let _ = cpl0::wrmsr(base + 1, seeded.next() & MTRR_ADDRESS | MTRR_VALID);
    }
    // The first entry applies to all memory in use, so it stays write-back.
    let pat = (1..8).fold(6, |pat, entry| pat | seeded.memory_type() << (8 * entry));
    let _ = cpl0::wrmsr(PAT, pat);
}

/// All values read in a round, in order.
struct Readings {
    values: [u64; MOST],
    count: usize,
}

fn run(cpu: &mut Cpu) -> ! {
    let mut first = Readings { values: [0; MOST], count: 0 };
    read(cpu, |_, _, value| {
        first.values[first.count] = value;
        first.count += 1;
    });
    let markers = if cpu.index() == 0 { cpu.options().markers } else { 0 };
    for n in 1..=markers {
        for _ in 0..ROUNDS_PER_MARKER {
            compare(cpu, &first);
        }
        cpu.marker_with(n, |cpu| compare(cpu, &first));
    }
    if markers > 0 {
        cpu.end();
    }
    loop {
        compare(cpu, &first);
    }
}

fn compare(cpu: &mut Cpu, first: &Readings) {
    let mut at = 0;
    read(cpu, |name, number, value| {
        verify(first.values[at], value, format_args!("{name} {number:#x}"));
        at += 1;
    });
    cpu.tick();
}

/// Reads all registers of this vCPU and calls `see` with each one's name, number and value.
fn read(cpu: &mut Cpu, mut see: impl FnMut(&str, u64, u64)) {
    if cpu.index() == 0 {
        read_board(&mut see);
        cpu.tick();
    }
    for register in LAPIC_READABLE {
        see("the LAPIC's register", register, lapic::read(register).into());
    }
    let variable = MTRR_VARIABLE..MTRR_VARIABLE + MTRR_VARIABLES;
    for msr in MSRS.into_iter().chain(variable).chain([PAT]) {
        see("MSR", msr.into(), cpl0::rdmsr(msr).unwrap_or(NO_MSR));
    }
    cpu.tick();
    for place in 0..DEBUG_REGISTERS {
        see("debug register at place", place as u64, cpl0::debug_register(place).unwrap_or(NO_MSR));
    }
    see("CR", 4, cpl0::cr4());
}

fn read_board(see: &mut impl FnMut(&str, u64, u64)) {
    read_clock(see);
    let mut port = |name: &str, port: u16, mask: u8| see(name, port.into(), (inb(port) & mask).into());
    // Neither the data nor the interrupt identification register: reading changes them.
    for register in [1, 3, 4, 5, 6, 7] {
        port("the UART's port", UART + register, 0xff);
    }
    let line = inb(UART + 3);
    outb(UART + 3, line | DIVISOR_LATCH);
    port("the UART's port, with its divisor open,", UART, 0xff);
    port("the UART's port, with its divisor open,", UART + 1, 0xff);
    outb(UART + 3, line);
    for (command, levels) in PIC_COMMANDS.into_iter().zip(LEVELS) {
        port("the PIC's port", command, 0xff);
        port("the PIC's port", command + 1, 0xff);
        port("the PIC's port", levels, 0xff);
    }
    for power in POWER {
        port("the power management's port", power, 0xff);
    }
    outb(PIT_COMMAND, PIT_STATUS);
    for channel in 0..3 {
        port("the PIT's status at port", PIT + channel, !PIT_MOVES);
    }
    port("port", SYSTEM_CONTROL, SYSTEM_CONTROL_FREE);
    see("the IOAPIC's selection", 0, ioapic::selected().into());
    let selected = ioapic::selected();
    for register in (0..3).chain(IOAPIC_ENTRIES..IOAPIC_ENTRIES + 2 * IOAPIC_PINS) {
        see("the IOAPIC's register", register.into(), ioapic::read(register).into());
    }
    ioapic::select(selected);
    for device in 0..PCI_DEVICES {
        outl(PCI_ADDRESS, PCI_ENABLE | device << 11);
        see("the identity of PCI device", device.into(), inl(PCI_DATA).into());
    }
}

/// First the register that was selected last time, in the last round or before the first one.
fn read_clock(see: &mut impl FnMut(&str, u64, u64)) {
    see("the clock's selected register", 0, inb(CLOCK + 1).into());
    let mut register = |register: u8, mask: u8| {
        outb(CLOCK, register);
        see("the clock's register", register.into(), (inb(CLOCK + 1) & mask).into());
    };
    register(10, CLOCK_A_FREE);
    // Not C: reading it changes it.
    [CLOCK_B, 13].into_iter().chain(CLOCK_ALARM).chain(CLOCK_DATE).for_each(|r| register(r, 0xff));
    CLOCK_MEMORY.for_each(|r| register(r, 0xff));
}
