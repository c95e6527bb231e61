//! Uses what only kernel mode has: control registers, task priority, `syscall` and `swapgs`.
//!
//! It needs `ring=0`. `test=` selects one part: control (CR0, CR2, CR3, CR4, CR8, EFER and the tables'
//! registers), priority (an interrupt that CR8 holds back arrives once it is lowered), syscall
//! (`sysret` to CPL3, which spins and comes back by `syscall`), swapgs (both bases, swapped in each
//! round); without it, every round does all of them. Marker n comes in the middle of round 10 n of vCPU 0.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

#[path = "kernel/syscall.rs"]
mod syscall;

use core::arch::asm;

use runtime::arch::{pause, rdtsc};
use runtime::damage::{self, verify};
use runtime::interrupts::{self, Eoi};
use runtime::words::Words;
use runtime::{Cpu, cpl0, kernel_mode, lapic};

const ROUNDS_PER_MARKER: u32 = 10;
const VECTOR: u8 = 0x64;
/// TSC ticks, or iterations at CPL3, during which a vCPU holds the values of a round.
const SPINS: u64 = 100_000;

const EFER: u32 = 0xc000_0080;
const EFER_SCE: u64 = 1;
const GS_BASE: u32 = 0xc000_0101;
const KERNEL_GS_BASE: u32 = 0xc000_0102;

/// Monitor the coprocessor, write protection, alignment checks: none has an effect on this guest.
const CR0_FREE: u64 = 1 << 1 | 1 << 16 | 1 << 18;
/// `rdtsc` at CPL0 only, debugging extensions, global pages, `rdpmc` at CPL3.
const CR4_FREE: u64 = 1 << 2 | 1 << 3 | 1 << 7 | 1 << 8;
/// Write-through and cache disable of the page table walk.
const CR3_FREE: u64 = 1 << 3 | 1 << 4;
/// Canonical addresses.
const LOW_HALF: u64 = 0x0000_7fff_ffff_ffff;

/// TSC ticks after which an interrupt counts as lost: about five seconds.
const PATIENCE: u64 = 15 << 30;
/// TSC ticks that one check counts at most, so that a stopped guest does not time out.
const ONE_LOOK: u64 = 1 << 24;

fn prepare(_: &mut Cpu) {
    assert!(kernel_mode::is_on(), "this guest needs ring=0");
    interrupts::expect(VECTOR, Eoi::Lapic);
}

fn run(cpu: &mut Cpu) -> ! {
    let markers = if cpu.index() == 0 { cpu.options().markers } else { 0 };
    let mut rounds = Rounds::new(cpu);
    let mut round = 0_u32;
    loop {
        round = round.wrapping_add(1);
        let marker =
            if round.is_multiple_of(ROUNDS_PER_MARKER) { round / ROUNDS_PER_MARKER } else { 0 };
        rounds.one(cpu, if (1..=markers).contains(&marker) { marker } else { 0 });
        if marker == markers && markers > 0 {
            cpu.end();
        }
    }
}

macro_rules! register {
    ($read:ident $write:ident $name:literal) => {
        fn $read() -> u64 {
            let value;
            // SAFETY: reads a register.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack)) };
            value
        }

        fn $write(value: u64) {
            // SAFETY: the bits that change do not affect this guest.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack)) };
        }
    };
}

register! { cr0 set_cr0 "cr0" }
register! { cr2 set_cr2 "cr2" }
register! { cr3 set_cr3 "cr3" }
register! { cr4 set_cr4 "cr4" }
register! { cr8 set_cr8 "cr8" }

/// What `sgdt`, `sidt`, `sldt` and `str` store.
#[derive(Clone, Copy, Default)]
struct Tables {
    gdt: [u16; 5],
    idt: [u16; 5],
    ldt: u16,
    task: u16,
}

impl Tables {
    fn now() -> Self {
        let mut tables = Self::default();
        let (gdt, idt) = (&raw mut tables.gdt, &raw mut tables.idt);
        // SAFETY: the first two store 10 bytes each.
        unsafe {
            asm!("sgdt [{}]", "sidt [{}]", "sldt {:x}", "str {:x}", in(reg) gdt, in(reg) idt,
                 out(reg) tables.ldt, out(reg) tables.task);
        }
        tables
    }

    fn verify(&self) {
        let now = Self::now();
        for (n, (a, b)) in self.gdt.iter().zip(now.gdt).enumerate() {
            verify((*a).into(), b.into(), format_args!("word {n} of GDTR"));
        }
        for (n, (a, b)) in self.idt.iter().zip(now.idt).enumerate() {
            verify((*a).into(), b.into(), format_args!("word {n} of IDTR"));
        }
        verify(self.ldt.into(), now.ldt.into(), format_args!("LDTR"));
        verify(self.task.into(), now.task.into(), format_args!("TR"));
    }
}

/// The rounds of one vCPU.
struct Rounds {
    words: Words,
    number: u64,
    tables: Tables,
    /// The registers as they were at the start.
    cr0: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    /// Interrupts that have arrived.
    arrived: u64,
    anchors: [u64; 2],
}

impl Rounds {
    fn new(cpu: &Cpu) -> Self {
        let efer = cpl0::rdmsr(EFER).unwrap_or(0);
        if cpu.wants("syscall") {
            syscall::prepare();
        }
        Self {
            words: Words::new(cpu.options().seed),
            number: 0,
            tables: Tables::now(),
            cr0: cr0(),
            cr3: cr3(),
            cr4: cr4(),
            efer,
            arrived: 0,
            anchors: [0; 2],
        }
    }

    fn word(&self, cpu: &Cpu, place: u64) -> u64 {
        self.words.first((cpu.index() as u64) << 12 | place << 16, self.number)
    }

    /// One round, which reaches `marker` while all values are in place, unless it is 0.
    fn one(&mut self, cpu: &mut Cpu, marker: u32) {
        self.number += 1;
        if cpu.wants("syscall") {
            let word = self.word(cpu, 1);
            syscall::round(word, SPINS);
        }
        let control = cpu.wants("control").then(|| self.set_control(cpu));
        if cpu.wants("swapgs") {
            self.set_bases(cpu);
        }
        let priority = if cpu.wants("priority") { self.hold_back(cpu) } else { cr8() };
        if marker > 0 {
            cpu.marker(marker);
        }
        let began = rdtsc();
        while rdtsc() - began < SPINS {
            pause();
        }
        if let Some([cr0_was, cr2_was, cr3_was, cr4_was, efer_was]) = control {
            for (expected, found, name) in [
                (cr0_was, cr0(), "CR0"),
                (cr2_was, cr2(), "CR2"),
                (cr3_was, cr3(), "CR3"),
                (cr4_was, cr4(), "CR4"),
                (priority, cr8(), "CR8"),
                (efer_was, cpl0::rdmsr(EFER).unwrap_or(0), "EFER"),
            ] {
                verify(expected, found, format_args!("{name}"));
            }
            self.tables.verify();
        }
        if cpu.wants("swapgs") {
            self.swap();
        }
        if cpu.wants("priority") {
            self.release(cpu, priority);
        }
        cpu.tick();
    }

    /// Sets CR0, CR2, CR3, CR4 and EFER, and returns their values.
    fn set_control(&mut self, cpu: &Cpu) -> [u64; 5] {
        let free = self.word(cpu, 2);
        set_cr0(self.cr0 & !CR0_FREE | free & CR0_FREE);
        set_cr3(self.cr3 & !CR3_FREE | free & CR3_FREE);
        set_cr4(self.cr4 & !CR4_FREE | free & CR4_FREE);
        // Of EFER, the bit that enables `syscall`, unless that is in use.
        let sce = if cpu.wants("syscall") { EFER_SCE } else { free >> 20 & EFER_SCE };
        let wrote = cpl0::wrmsr(EFER, self.efer & !EFER_SCE | sce);
        assert!(wrote.is_ok(), "EFER cannot be written");
        set_cr2(self.word(cpu, 3) & LOW_HALF);
        [cr0(), cr2(), cr3(), cr4(), cpl0::rdmsr(EFER).unwrap_or(0)]
    }

    /// Raises the task priority above an interrupt that it then sends; returns the priority.
    fn hold_back(&mut self, cpu: &Cpu) -> u64 {
        let lowest = u64::from(VECTOR >> 4);
        let priority = lowest + self.word(cpu, 4) % (16 - lowest);
        set_cr8(priority);
        lapic::send_to(cpu.index(), VECTOR);
        cpl0::interrupts_on();
        priority
    }

    /// Lowers the priority, at which the interrupt must arrive, and not before.
    fn release(&mut self, cpu: &mut Cpu, priority: u64) {
        verify(priority, cr8(), format_args!("CR8"));
        verify(self.arrived, interrupts::count(VECTOR), format_args!("interrupts below CR8"));
        self.arrived += 1;
        set_cr8(0);
        let (mut waited, mut last) = (0, rdtsc());
        while interrupts::count(VECTOR) < self.arrived {
            let now = rdtsc();
            waited += (now - last).min(ONE_LOOK);
            last = now;
            if waited > PATIENCE {
                damage::wrong(self.arrived, self.arrived - 1, format_args!("interrupts: lost"));
            }
            cpu.tick();
        }
        cpl0::interrupts_off();
        verify(self.arrived, interrupts::count(VECTOR), format_args!("interrupts after CR8"));
    }

    /// Sets the base of GS and the one that `swapgs` exchanges it with.
    fn set_bases(&mut self, cpu: &Cpu) {
        self.anchors = [self.word(cpu, 5), self.word(cpu, 6)];
        for (msr, anchor) in [GS_BASE, KERNEL_GS_BASE].into_iter().zip(&self.anchors) {
            let wrote = cpl0::wrmsr(msr, (&raw const *anchor).addr() as u64);
            assert!(wrote.is_ok(), "MSR {msr:#x} cannot be written");
        }
        swapgs();
    }

    /// Checks what GS points to, and again after `swapgs`.
    fn swap(&self) {
        for (expected, name) in [(1, "swapped"), (0, "own")] {
            let found: u64;
            // SAFETY: both bases point to an anchor of this vCPU.
            unsafe { asm!("mov {}, gs:[0]", out(reg) found, options(nostack)) };
            verify(self.anchors[expected], found, format_args!("what the {name} GS points to"));
            swapgs();
        }
        swapgs();
    }
}

fn swapgs() {
    // SAFETY: nothing else in this guest uses GS.
    unsafe { asm!("swapgs", options(nostack)) };
}
