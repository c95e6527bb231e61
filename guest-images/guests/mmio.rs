//! Reads, writes and modifies a counting page of MMIO, in every width and by string instructions.
//!
//! It proves that an access during an update is neither lost nor repeated, not even in part. vCPUs
//! take turns. Marker n comes after n hundred accesses of vCPU 0, which continue while it waits.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use core::arch::asm;

use runtime::damage::verify;
use runtime::lock::Lock;
use runtime::mailbox::SEQUENCE_PAGE;
use runtime::{Cpu, test_device};

const ACCESSES_PER_MARKER: u32 = 100;
/// Accesses between two checks of the device's counts.
const LOOK_EVERY: u64 = 16;
/// String instructions in a row.
const ITEMS: usize = 12;

const DATA: usize = SEQUENCE_PAGE as usize;
const CELL: usize = DATA + 0x40;

/// The counts that the device must have.
struct Counts {
    reads: u64,
    writes: u64,
    cell: u64,
    cell_accesses: u64,
    /// Checks so far, each of which reads the cell.
    looks: u64,
    accesses: u64,
}

static COUNTS: Lock<Counts> =
    Lock::new(Counts { reads: 0, writes: 0, cell: 0, cell_accesses: 0, looks: 0, accesses: 0 });

fn prepare(_: &mut Cpu) {
    test_device::need();
}

fn run(cpu: &mut Cpu) -> ! {
    let markers = if cpu.index() == 0 { cpu.options().markers } else { 0 };
    for n in 1..=markers {
        for _ in 0..ACCESSES_PER_MARKER {
            access(cpu);
        }
        cpu.marker_with(n, access);
    }
    if markers > 0 {
        cpu.end();
    }
    loop {
        access(cpu);
    }
}

fn access(cpu: &mut Cpu) {
    COUNTS.with(cpu, |counts, _| {
        counts.access();
        if counts.accesses.is_multiple_of(LOOK_EVERY) {
            counts.look();
        }
    });
    cpu.tick();
}

/// Item `number` of the sequence, truncated to `bytes` bytes.
fn item(number: u64, bytes: usize) -> u64 {
    number & (u64::MAX >> (64 - 8 * bytes))
}

impl Counts {
    fn access(&mut self) {
        match self.accesses % 12 {
            kind @ 0..4 => self.write(1 << kind),
            kind @ 4..8 => self.read(1 << (kind - 4)),
            8 => self.modify(),
            9 => self.read_string(),
            10 => self.write_string(),
            _ => self.modify(),
        }
        self.accesses += 1;
    }

    fn write(&mut self, bytes: usize) {
        let value = self.writes;
        // SAFETY: the page is mapped; the device does not write to memory.
        unsafe {
            match bytes {
                1 => asm!("mov [{}], al", in(reg) DATA, in("rax") value),
                2 => asm!("mov [{}], ax", in(reg) DATA, in("rax") value),
                4 => asm!("mov [{}], eax", in(reg) DATA, in("rax") value),
                _ => asm!("mov [{}], rax", in(reg) DATA, in("rax") value),
            }
        }
        self.writes += 1;
    }

    fn read(&mut self, bytes: usize) {
        let mut value = 0_u64;
        // SAFETY: the page is mapped; the device does not write to memory.
        unsafe {
            match bytes {
                1 => asm!("mov al, [{}]", in(reg) DATA, inout("rax") value),
                2 => asm!("mov ax, [{}]", in(reg) DATA, inout("rax") value),
                4 => asm!("mov eax, [{}]", in(reg) DATA, inout("rax") value),
                _ => asm!("mov rax, [{}]", in(reg) DATA, inout("rax") value),
            }
        }
        let expected = item(self.reads, bytes);
        verify(expected, value, format_args!("number read, {bytes} bytes wide"));
        self.reads += 1;
    }

    /// Accesses the cell with one instruction that reads and writes.
    fn modify(&mut self) {
        let step = self.accesses | 1;
        // SAFETY: the page is mapped; the device does not write to memory.
        unsafe {
            match step % 4 {
                1 => asm!("add [{}], {}", in(reg) CELL, in(reg) step),
                _ => asm!("xor [{}], {}", in(reg) CELL, in(reg) step),
            }
        }
        self.cell = if step % 4 == 1 { self.cell.wrapping_add(step) } else { self.cell ^ step };
        self.cell_accesses += 1;
    }

    /// Reads the same address repeatedly.
    fn read_string(&mut self) {
        for _ in 0..ITEMS {
            let mut found = 0_u32;
            let to = &raw mut found;
            // SAFETY: reads the device once and writes 4 bytes.
            unsafe { asm!("movsd", inout("rsi") DATA => _, inout("rdi") to => _) };
            verify(item(self.reads, 4), found.into(), format_args!("number read by movs"));
            self.reads += 1;
        }
    }

    /// Writes to the same address repeatedly.
    fn write_string(&mut self) {
        for _ in 0..ITEMS {
            let value = self.writes as u32;
            // SAFETY: writes the device once.
            unsafe { asm!("stosd", in("eax") value, inout("rdi") DATA => _) };
            self.writes += 1;
        }
    }

    /// Checks the device's counts.
    fn look(&mut self) {
        for (offset, expected, name) in [
            (0x10, self.reads, "reads of the page"),
            (0x18, self.writes, "writes to the page"),
            (0x20, 0, "writes out of order"),
            (0x40, self.cell, "cell"),
            (0x48, self.cell_accesses + self.looks + 1, "reads of the cell"),
            (0x50, self.cell_accesses, "writes to the cell"),
        ] {
            let at = core::ptr::with_exposed_provenance::<u64>(DATA + offset);
            // SAFETY: the page is mapped.
            let found = unsafe { at.read_volatile() };
            verify(expected, found, format_args!("{name}"));
        }
        self.looks += 1;
    }
}
