//! Every vCPU counts and notes the largest gap in its time.
//!
//! Proves that vCPUs go on where they were, all of them, with a TSC that never goes back. Marker n
//! comes after n thousand heartbeats of vCPU 0, then the end asked for.

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
