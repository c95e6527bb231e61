//! Reads and writes a counting port, in every width, with single and string instructions.
//!
//! It proves that an access during an update is neither lost nor repeated. vCPUs take turns.
//! Marker n comes after n hundred accesses of vCPU 0, which continue while it waits.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use core::arch::asm;

use runtime::damage::verify;
use runtime::lock::Lock;
use runtime::mailbox::{SEQUENCE_COUNTS, SEQUENCE_PORT};
use runtime::{Cpu, test_device};

const ACCESSES_PER_MARKER: u32 = 100;
/// Accesses between two checks of the device's counts.
const LOOK_EVERY: u64 = 16;
/// Items of a string instruction.
const ITEMS: usize = 24;

/// The counts that the device must have.
struct Counts {
    reads: u64,
    writes: u64,
    accesses: u64,
}

static COUNTS: Lock<Counts> = Lock::new(Counts { reads: 0, writes: 0, accesses: 0 });

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
        let kind = self.accesses % 12;
        let bytes = 1 << (kind % 3);
        match kind / 3 {
            0 => self.write(bytes),
            1 => self.read(bytes),
            2 => self.write_string(bytes),
            _ => self.read_string(bytes),
        }
        self.accesses += 1;
    }

    fn write(&mut self, bytes: usize) {
        let value = self.writes as u32;
        let port = SEQUENCE_PORT;
        // SAFETY: the device does not write to memory.
        unsafe {
            match bytes {
                1 => asm!("out dx, al", in("dx") port, in("eax") value),
                2 => asm!("out dx, ax", in("dx") port, in("eax") value),
                _ => asm!("out dx, eax", in("dx") port, in("eax") value),
            }
        }
        self.writes += 1;
    }

    fn read(&mut self, bytes: usize) {
        let mut value: u32 = 0;
        let port = SEQUENCE_PORT;
        // SAFETY: the device does not write to memory.
        unsafe {
            match bytes {
                1 => asm!("in al, dx", in("dx") port, inout("eax") value),
                2 => asm!("in ax, dx", in("dx") port, inout("eax") value),
                _ => asm!("in eax, dx", in("dx") port, inout("eax") value),
            }
        }
        let expected = item(self.reads, bytes);
        verify(expected, value.into(), format_args!("number read, {bytes} bytes wide"));
        self.reads += 1;
    }

    fn write_string(&mut self, bytes: usize) {
        let mut items = [0_u8; 4 * ITEMS];
        for (n, place) in items.chunks_exact_mut(bytes).take(ITEMS).enumerate() {
            place.copy_from_slice(&(self.writes + n as u64).to_le_bytes()[..bytes]);
        }
        let (from, port, count) = (items.as_ptr(), SEQUENCE_PORT, ITEMS);
        let (end, left): (*const u8, usize);
        // SAFETY: reads `ITEMS` items of the array.
        unsafe {
            match bytes {
                1 => {
                    asm!("rep outsb", in("dx") port, inout("rsi") from => end, inout("rcx") count => left)
                }
                2 => {
                    asm!("rep outsw", in("dx") port, inout("rsi") from => end, inout("rcx") count => left)
                }
                _ => {
                    asm!("rep outsd", in("dx") port, inout("rsi") from => end, inout("rcx") count => left)
                }
            }
        }
        verify(0, left as u64, format_args!("RCX after rep outs"));
        verify(
            (ITEMS * bytes) as u64,
            (end.addr() - from.addr()) as u64,
            format_args!("RSI of rep outs"),
        );
        self.writes += ITEMS as u64;
    }

    fn read_string(&mut self, bytes: usize) {
        let mut items = [0_u8; 4 * ITEMS];
        let (to, port, count) = (items.as_mut_ptr(), SEQUENCE_PORT, ITEMS);
        let (end, left): (*mut u8, usize);
        // SAFETY: writes `ITEMS` items of the array.
        unsafe {
            match bytes {
                1 => {
                    asm!("rep insb", in("dx") port, inout("rdi") to => end, inout("rcx") count => left)
                }
                2 => {
                    asm!("rep insw", in("dx") port, inout("rdi") to => end, inout("rcx") count => left)
                }
                _ => {
                    asm!("rep insd", in("dx") port, inout("rdi") to => end, inout("rcx") count => left)
                }
            }
        }
        verify(0, left as u64, format_args!("RCX after rep ins"));
        verify(
            (ITEMS * bytes) as u64,
            (end.addr() - to.addr()) as u64,
            format_args!("RDI of rep ins"),
        );
        for (n, place) in items.chunks_exact(bytes).take(ITEMS).enumerate() {
            let found = place.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            let expected = item(self.reads + n as u64, bytes);
            verify(expected, found, format_args!("item {n} of rep ins, {bytes} bytes wide"));
        }
        self.reads += ITEMS as u64;
    }

    /// Checks the device's counts.
    fn look(&self) {
        let expected = [self.reads, self.writes, 0];
        let names = ["reads of the port", "writes to the port", "writes out of order"];
        for ((port, expected), name) in SEQUENCE_COUNTS.into_iter().zip(expected).zip(names) {
            let count: u32;
            // SAFETY: the device does not write to memory.
            unsafe { asm!("in eax, dx", in("dx") port, out("eax") count) };
            verify(expected as u32 as u64, count.into(), format_args!("{name}"));
        }
    }
}
