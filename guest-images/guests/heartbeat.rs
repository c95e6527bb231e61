//! Counts heartbeats on every vCPU and records the largest gap between two of them.
//!
//! It proves that all vCPUs continue where they stopped, with a TSC that never goes back. Marker n
//! comes after n thousand heartbeats of vCPU 0; after the last, the guest ends as `end=` says.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use runtime::Cpu;

fn prepare(_: &mut Cpu) {}

fn run(cpu: &mut Cpu) -> ! {
    if cpu.index() == 0 {
        for n in 1..=cpu.options().markers {
            for _ in 0..1000 {
                cpu.tick();
            }
            cpu.marker(n);
        }
        cpu.end();
    }
    loop {
        cpu.tick();
    }
}
