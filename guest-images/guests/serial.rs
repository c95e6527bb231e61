//! Sends and receives numbered lines on the serial port, driven only by its interrupts.
//!
//! A line is eight hexadecimal digits. A received line must be the next one, byte for byte; the
//! host checks those sent. Between interrupts vCPU 0 is in `hlt`, so a lost interrupt stops it. A
//! sweep is 16 received lines. Marker n comes in the middle of sent line 40 n.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use core::sync::atomic::Ordering::Relaxed;

use runtime::arch::{inb, outb};
use runtime::damage::verify;
use runtime::interrupts::{self, Eoi};
use runtime::ioapic::{self, Trigger};
use runtime::{Cpu, cpl0, mailbox};

const VECTOR: u8 = 0x48;
const GSI: u8 = 4;
const LINES_PER_MARKER: u32 = 40;
const LINES_PER_SWEEP: u32 = 16;

const DATA: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = 0x3f9;
const INTERRUPT_ID: u16 = 0x3fa;
const LINE_STATUS: u16 = 0x3fd;
/// Interrupts for received data and for an empty transmitter.
const ENABLED: u8 = 0b11;
const DATA_READY: u8 = 1 << 0;
const MAY_SEND: u8 = 1 << 5;
/// Enables and clears the FIFOs.
const FIFO: u8 = 0b111;

fn prepare(cpu: &mut Cpu) {
    if cpu.index() == 0 {
        interrupts::expect(VECTOR, Eoi::Lapic);
        ioapic::route(GSI, VECTOR, Trigger::Edge, 0);
    }
}

/// Byte `at` of a line; the last one is the newline.
fn byte(line: u32, at: u32) -> u8 {
    match at {
        8 => b'\n',
        at => b"0123456789abcdef"[(line >> (28 - 4 * at)) as usize & 15],
    }
}

/// A position in a stream of lines.
struct Place {
    line: u32,
    at: u32,
}

impl Place {
    fn byte(&self) -> u8 {
        byte(self.line, self.at)
    }

    fn step(&mut self) {
        self.at = (self.at + 1) % 9;
        self.line += u32::from(self.at == 0);
    }
}

fn run(cpu: &mut Cpu) -> ! {
    if cpu.index() > 0 {
        loop {
            cpu.tick();
        }
    }
    let mut out = Place { line: 0, at: 0 };
    let mut taken = Place { line: 0, at: 0 };
    let mut seen = 0;
    outb(INTERRUPT_ID, FIFO);
    outb(INTERRUPT_ENABLE, ENABLED);
    send(&mut out, cpu);
    loop {
        while interrupts::count(VECTOR) == seen {
            cpl0::halt();
        }
        seen = interrupts::count(VECTOR);
        // Reading it acknowledges the interrupt.
        let _ = inb(INTERRUPT_ID);
        while inb(LINE_STATUS) & DATA_READY != 0 {
            let found = inb(DATA);
            let line = taken.line;
            verify(taken.byte().into(), found.into(), format_args!("byte of line {line} taken"));
            taken.step();
        }
        mailbox().sweeps.store((taken.line / LINES_PER_SWEEP).into(), Relaxed);
        send(&mut out, cpu);
        cpu.tick();
    }
}

/// Sends as much as possible at once, up to the end of the line.
fn send(out: &mut Place, cpu: &mut Cpu) {
    loop {
        if inb(LINE_STATUS) & MAY_SEND == 0 {
            return;
        }
        if out.at == 4 && out.line > 0 && out.line.is_multiple_of(LINES_PER_MARKER) {
            cpu.marker(out.line / LINES_PER_MARKER);
        }
        outb(DATA, out.byte());
        out.step();
        if out.at == 0 {
            return;
        }
    }
}
