//! Fails on purpose, in the way that `fault=` on the command line selects.
//!
//! It proves that the harness detects failures. The last vCPU fails, after `markers=` markers
//! a thousand heartbeats apart; the others only have heartbeats.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use core::arch::asm;

use runtime::options::Fault;
use runtime::{Cpu, shim};

/// An address far above all mapped memory.
const NOWHERE: usize = 0x7000_0000_0000;

fn prepare(_: &mut Cpu) {}

fn run(cpu: &mut Cpu) -> ! {
    if cpu.index() == cpu.options().cpus - 1 {
        for n in 1..=cpu.options().markers {
            for _ in 0..1000 {
                cpu.tick();
            }
            cpu.marker(n);
        }
        fail(cpu.options().fault);
    }
    loop {
        cpu.tick();
    }
}

fn fail(fault: Fault) -> ! {
    match fault {
        // SAFETY: ends in the exception handler, which does not return.
        Fault::Divide => unsafe {
            asm!("xor ecx, ecx", "div ecx", "ud2", options(noreturn));
        },
        Fault::Undefined => undefined(),
        // SAFETY: as above; `hlt` is privileged.
        Fault::Privileged => unsafe {
            asm!("hlt", "ud2", options(noreturn));
        },
        // SAFETY: as above; nothing is mapped there.
        Fault::Page => unsafe {
            asm!("mov eax, [{}]", "ud2", in(reg) NOWHERE, options(noreturn));
        },
        Fault::Panic => panic!("as the command line asked"),
        Fault::Triple => {
            shim::drop_exception_handlers();
            undefined()
        }
        Fault::Hang => shim::stop(),
    }
}

fn undefined() -> ! {
    // SAFETY: ends in the exception handler, which does not return.
    unsafe { asm!("ud2", options(noreturn)) }
}
