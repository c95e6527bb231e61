//! The runtime of every guest: from the entry point to the body on every vCPU.
//!
//! A guest is one file that declares `mod runtime` and has two functions:
//! `fn prepare(cpu: &mut Cpu)`, which every vCPU runs before the guest counts as running, and
//! `fn run(cpu: &mut Cpu) -> !`, its body. Both run with interrupts off, at CPL3 or as `ring=` says.
//! The RAM, the image and the LAPIC are identity-mapped and accessible to them.

// No guest uses all of it.
#![allow(dead_code)]

use core::sync::atomic::{
    AtomicPtr, AtomicU32,
    Ordering::{Acquire, Release},
};

pub mod arch;
pub mod boot_info;
pub mod cpl0;
pub mod cpu;
pub mod damage;
mod fw_cfg;
pub mod interrupts;
pub mod ioapic;
pub mod kernel_mode;
pub mod lapic;
pub mod lock;
pub mod mailbox;
mod mem;
pub mod options;
mod paging;
pub mod pci;
mod ports;
mod reporting;
pub mod shim;
pub mod test_device;
mod usable;
pub mod virtio;
pub mod words;

pub use boot_info::BootInfo;
pub use cpu::Cpu;
use damage::Report;
use mailbox::{MAILBOX_GPA, Mailbox, damage_kind, phase};

/// The number of vCPUs that have finished `prepare`.
static PREPARED: AtomicU32 = AtomicU32::new(0);
/// The boot information, set by the boot vCPU for the others; null before.
static BOOT_INFO: AtomicPtr<BootInfo> = AtomicPtr::new(core::ptr::null_mut());

/// The mailbox.
#[inline]
pub fn mailbox() -> &'static Mailbox {
    // SAFETY: that page is RAM that the guest uses for nothing else; all its fields are atomics.
    unsafe { &*core::ptr::with_exposed_provenance(MAILBOX_GPA as usize) }
}

/// The entry point at CPL3, called by the shim: on the boot vCPU with `start_info`, else with 0.
#[unsafe(no_mangle)]
extern "C" fn guest_entry(start_info: u64, index: usize) -> ! {
    if start_info == 0 { other_cpu(index) } else { boot_cpu(start_info, index) }
}

fn boot_cpu(start_info: u64, index: usize) -> ! {
    // Before the mailbox is reset, which may overlap the VMM's structures in low RAM.
    // SAFETY: the shim passes the value of EBX.
    let info = unsafe { BootInfo::read(start_info) };
    reporting::set_up(
        mailbox(),
        env!("GUEST_NAME"),
        info.as_ref().map_or(0, |info| info.options.seed),
    );
    let info = match &info {
        Ok(info) => info,
        Err(what) => panic!("{what}"),
    };
    assert!(index == 0, "the boot vCPU has APIC ID {index}");
    // SAFETY: this function never returns, so its variables live as long as the guest.
    let info: &'static BootInfo = unsafe { &*core::ptr::from_ref(info) };
    let page = mailbox();

    ports::open(info.options.ports);
    kernel_mode::enter(info.options.ring);
    lapic::mask_8259s();
    paging::map_up_to(info.ram().iter().map(|range| range.end).max().unwrap_or(0));
    page.phase.store(phase::PREPARING, Release);

    let mut cpu = Cpu::new(index, info);
    BOOT_INFO.store((&raw const *info).cast_mut(), Release);
    lapic::enable();
    lapic::place_trampoline();
    for id in 1..info.options.cpus {
        lapic::start_cpu(id);
    }
    cpu.go_online();
    await_cpus(&mut cpu);

    prepare(&mut cpu);
    cpu.tick_until(|| PREPARED.load(Acquire) as usize == info.options.cpus);
    page.phase.store(phase::RUNNING, Release);
    body(&mut cpu)
}

fn other_cpu(index: usize) -> ! {
    // SAFETY: the boot vCPU has set it before it started this one, and never changes it.
    let info: &'static BootInfo = unsafe { &*BOOT_INFO.load(Acquire) };
    if index >= info.options.cpus {
        shim::stop();
    }
    ports::open(info.options.ports);
    kernel_mode::enter(info.options.ring);
    lapic::enable();
    let mut cpu = Cpu::new(index, info);
    cpu.go_online();
    prepare(&mut cpu);
    cpu.tick_until(|| mailbox().phase.load(Acquire) != phase::PREPARING);
    body(&mut cpu)
}

fn body(cpu: &mut Cpu) -> ! {
    if mailbox().unavailable[0].load(Acquire) != 0 {
        cpu.tick_until(|| false);
    }
    crate::run(cpu)
}

/// Runs the guest's `prepare` on this vCPU; gaps during it do not count.
fn prepare(cpu: &mut Cpu) {
    crate::prepare(cpu);
    cpu.forget_gap();
    PREPARED.fetch_add(1, Release);
}

/// Waits until all requested vCPUs are online. A missing one is damage.
fn await_cpus(cpu: &mut Cpu) {
    /// TSC ticks to wait: about ten seconds.
    const PATIENCE: u64 = 30 << 30;
    /// TSC ticks that one check counts at most, so that a stopped guest does not time out.
    const ONE_LOOK: u64 = 1 << 24;

    let mut waited = 0;
    let mut last = arch::rdtsc();
    for id in 1..cpu.options().cpus {
        while mailbox().cpus[id].online.load(Acquire) == 0 {
            cpu.tick();
            let now = arch::rdtsc();
            waited += (now - last).min(ONE_LOOK);
            last = now;
            if waited > PATIENCE {
                damage::report(
                    Report {
                        kind: damage_kind::CPU_MISSING,
                        detail: id as u64,
                        ..Report::default()
                    },
                    format_args!("vCPU {id} did not come up"),
                );
            }
        }
    }
}
