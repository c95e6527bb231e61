//! Puts its LAPIC into x2APIC mode, and checks the registers that differ from xAPIC mode.
//!
//! Marker n comes after n hundred rounds of vCPU 0. The shim's handler supports xAPIC mode only, so
//! the guest uses no interrupts.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use runtime::damage::{unavailable, verify};
use runtime::{Cpu, cpl0};

const ROUNDS_PER_MARKER: u32 = 100;
const APIC_BASE: u32 = 0x1b;
const X2APIC: u64 = 1 << 10;
const CPUID_X2APIC: u32 = 1 << 21;
const ID: u32 = 0x802;
const LOGICAL: u32 = 0x80d;
const COMMAND: u32 = 0x830;
/// A vector for an unused APIC ID.
const NOWHERE: u64 = 0x55 << 32 | 0x60;

fn prepare(_: &mut Cpu) {
    let offered = cpl0::cpuid(1, 0)[2] & CPUID_X2APIC != 0;
    let base = cpl0::rdmsr(APIC_BASE).unwrap_or(0);
    let is_on = offered
        && cpl0::wrmsr(APIC_BASE, base | X2APIC).is_ok()
        && cpl0::rdmsr(APIC_BASE) == Ok(base | X2APIC)
        && cpl0::wrmsr(COMMAND, NOWHERE).is_ok()
        && cpl0::rdmsr(COMMAND) == Ok(NOWHERE);
    if !is_on {
        unavailable(format_args!("x2APIC mode"));
    }
}

fn run(cpu: &mut Cpu) -> ! {
    let markers = if cpu.index() == 0 { cpu.options().markers } else { 0 };
    for n in 1..=markers {
        for _ in 0..ROUNDS_PER_MARKER {
            check(cpu);
        }
        cpu.marker_with(n, check);
    }
    if markers > 0 {
        cpu.end();
    }
    loop {
        check(cpu);
    }
}

fn check(cpu: &mut Cpu) {
    let index = cpu.index() as u64;
    for (msr, expected, name) in [
        (APIC_BASE, X2APIC, "x2APIC mode"),
        (ID, index, "the LAPIC's ID"),
        (LOGICAL, (index & !15) << 12 | 1 << (index & 15), "the LAPIC's logical ID"),
        (COMMAND, NOWHERE, "the LAPIC's last command"),
    ] {
        let found = cpl0::rdmsr(msr).unwrap_or(u64::MAX);
        let found = if msr == APIC_BASE { found & X2APIC } else { found };
        verify(expected, found, format_args!("{name}"));
    }
    cpu.tick();
}
