//! Has interrupts pending, in service and in shadows, each of which must arrive once.
//!
//! `test=` selects the kind: edge and level (through the IOAPIC), pic-edge and pic-level (through
//! the 8259), ipi, nmi, two (at once), service (one waits until another ends), sti and mov-ss (one
//! waits for the shadow of that instruction to end), step (a trap after each instruction), host-nmi
//! and host-irqfd (the host must send one at each marker). vCPU 0 runs every kind, the others only
//! those of the LAPIC. Marker n comes in the middle of round 10 n of vCPU 0.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use core::arch::asm;

use runtime::arch::{outb, outl, pause, rdtsc};
use runtime::damage::{self, unavailable, verify};
use runtime::interrupts::{self, Eoi};
use runtime::ioapic::{self, Trigger};
use runtime::mailbox::LINES_PORT;
use runtime::{Cpu, cpl0, lapic, test_device};

const ROUNDS_PER_MARKER: u32 = 10;
const DEBUG: u8 = 1;
const NMI: u8 = 2;
const PIC: u8 = 0x30;
const LOW: u8 = 0x64;
const HIGH: u8 = 0x75;
const PROBE: u8 = 0x80;
/// A line of the test device that nothing else uses.
const LINE: u8 = 5;
/// Another line, which passes through both 8259s.
const PIC_LINE: u8 = 11;
/// The line that the host triggers through an eventfd.
const IRQFD_LINE: u8 = 6;
const PIC_COMMANDS: [u16; 2] = [0xa0, 0x20];
const PIC_EOI: u8 = 0x20;

/// TSC ticks after which an interrupt counts as lost: about five seconds.
const PATIENCE: u64 = 15 << 30;
/// TSC ticks that one check counts at most, so that a stopped guest does not time out.
const ONE_LOOK: u64 = 1 << 24;

fn prepare(cpu: &mut Cpu) {
    if cpu.index() > 0 {
        return;
    }
    if matches!(cpu.options().test.as_str(), "edge" | "level" | "pic-edge" | "pic-level") {
        test_device::need();
    }
    match cpu.options().test.as_str() {
        "edge" => ioapic::route(LINE, LOW, Trigger::Edge, 0),
        "host-irqfd" => ioapic::route(IRQFD_LINE, LOW, Trigger::Edge, 0),
        "host-nmi" => lapic::open_nmi_line(),
        "level" => ioapic::route(LINE, LOW, Trigger::Level, 0),
        "pic-edge" | "pic-level" => {
            ioapic::mask(PIC_LINE);
            lapic::open_8259s(PIC, PIC_LINE, cpu.wants_only("pic-level"));
        }
        _ => {}
    }
    let low = if cpu.wants_only("level") { Eoi::Body } else { Eoi::Lapic };
    interrupts::expect(LOW, low);
    interrupts::expect(HIGH, if cpu.wants_only("service") { Eoi::Body } else { Eoi::Lapic });
    interrupts::expect(PIC + PIC_LINE, Eoi::Body);
    interrupts::expect(NMI, Eoi::Body);
    if cpu.wants_only("step") {
        interrupts::expect(DEBUG, Eoi::Body);
        if step_ten() != TRAPS_OF_TEN {
            unavailable(format_args!("a trap after each instruction at CPL3"));
        }
    }
    if (cpu.wants_only("level") || cpu.wants_only("service")) && !service_lasts(cpu) {
        unavailable(format_args!(
            "an interrupt in service (the LAPIC ends each by itself when it is delivered)"
        ));
    }
}

/// Whether an interrupt stays in service until it is ended.
fn service_lasts(cpu: &mut Cpu) -> bool {
    interrupts::expect(PROBE, Eoi::Body);
    lapic::send_to(cpu.index(), PROBE);
    cpl0::interrupts_on();
    cpu.tick_until(|| interrupts::count(PROBE) == 1);
    cpl0::interrupts_off();
    let lasts = lapic::is_in_service(PROBE);
    lapic::end_of_interrupt();
    lasts
}

fn run(cpu: &mut Cpu) -> ! {
    let markers = if cpu.index() == 0 { cpu.options().markers } else { 0 };
    let mut counts = Counts { low: 0, high: 0, pic: 0, nmi: 0 };
    let mut round = 0_u32;
    loop {
        round = round.wrapping_add(1);
        let marker =
            if round.is_multiple_of(ROUNDS_PER_MARKER) { round / ROUNDS_PER_MARKER } else { 0 };
        let mut instant = |cpu: &mut Cpu| {
            if (1..=markers).contains(&marker) {
                cpu.marker(marker);
            }
        };
        match cpu.options().test.as_str() {
            "edge" if cpu.index() == 0 => counts.edge(cpu, &mut instant),
            "level" if cpu.index() == 0 => counts.level(cpu, &mut instant),
            "pic-edge" if cpu.index() == 0 => counts.pic_edge(cpu, &mut instant),
            "pic-level" if cpu.index() == 0 => counts.pic_level(cpu, &mut instant),
            "" | "ipi" => counts.ipi(cpu, &mut instant),
            "nmi" => counts.nmi(cpu, &mut instant),
            "two" => counts.two(cpu, &mut instant),
            "service" => counts.service(cpu, &mut instant),
            "sti" => counts.shadow(cpu, &mut instant, cpl0::open_in_sti_shadow),
            "mov-ss" => counts.shadow(cpu, &mut instant, cpl0::open_in_mov_ss_shadow),
            "host-nmi" if cpu.index() == 0 => counts.host_nmi(cpu, marker, &mut instant),
            "host-irqfd" if cpu.index() == 0 => counts.irqfd(cpu, marker, &mut instant),
            "step" if cpu.index() == 0 => step(cpu, &mut instant),
            "edge" | "level" | "pic-edge" | "pic-level" | "host-nmi" | "host-irqfd" | "step" => {}
            other => panic!("test={other} is none of this guest's"),
        }
        if marker == markers && markers > 0 {
            cpu.end();
        }
        cpu.tick();
    }
}

/// Traps of ten instructions: one for each, and one for each of the two that end stepping.
const TRAPS_OF_TEN: u64 = 12;

/// Steps through ten instructions and returns the number of traps.
fn step_ten() -> u64 {
    let before = interrupts::count(DEBUG);
    // SAFETY: the trap flag is set and cleared again; the handler counts and returns.
    unsafe {
        asm!(
            "pushfq",
            "pushfq",
            "or dword ptr [rsp], 0x100",
            "popfq",
            ".rept 10",
            "nop",
            ".endr",
            "nop",
            "popfq",
        );
    }
    interrupts::count(DEBUG) - before
}

fn step(cpu: &mut Cpu, instant: &mut dyn FnMut(&mut Cpu)) {
    instant(cpu);
    verify(TRAPS_OF_TEN, step_ten(), format_args!("traps of ten instructions"));
}

/// Makes the test device pulse (0), raise (1) or lower (2) the line.
fn line(order: u32) {
    outl(LINES_PORT, u32::from(LINE) | order << 8);
}

/// Like [`line`], for the line of the 8259s.
fn pic_line(order: u32) {
    outl(LINES_PORT, u32::from(PIC_LINE) | order << 8);
}

/// Ends the interrupt in service in both 8259s.
fn end_pic() {
    for command in PIC_COMMANDS {
        outb(command, PIC_EOI);
    }
}

/// The number of interrupts that must have arrived on this vCPU, by vector.
struct Counts {
    low: u64,
    high: u64,
    pic: u64,
    nmi: u64,
}

impl Counts {
    fn verify(&self, when: &str) {
        for (vector, expected) in
            [(LOW, self.low), (HIGH, self.high), (PIC + PIC_LINE, self.pic), (NMI, self.nmi)]
        {
            let found = interrupts::count(vector);
            verify(expected, found, format_args!("interrupts {vector:#x} {when}"));
        }
    }

    /// Enables interrupts until all expected ones have arrived, and a little longer.
    fn collect(&self, cpu: &mut Cpu) {
        cpl0::interrupts_on();
        self.wait(cpu);
        for _ in 0..100 {
            cpu.tick();
        }
        cpl0::interrupts_off();
        self.verify("with interrupts on");
    }

    fn wait(&self, cpu: &mut Cpu) {
        let mut waited = 0;
        let mut last = rdtsc();
        for (vector, expected) in
            [(LOW, self.low), (HIGH, self.high), (PIC + PIC_LINE, self.pic), (NMI, self.nmi)]
        {
            while interrupts::count(vector) < expected {
                let now = rdtsc();
                waited += (now - last).min(ONE_LOOK);
                last = now;
                if waited > PATIENCE {
                    let found = interrupts::count(vector);
                    damage::wrong(expected, found, format_args!("interrupts {vector:#x}: lost"));
                }
                pause();
                cpu.tick();
            }
        }
    }

    fn edge(&mut self, cpu: &mut Cpu, instant: &mut dyn FnMut(&mut Cpu)) {
        line(0);
        instant(cpu);
        self.verify("with interrupts off");
        self.low += 1;
        self.collect(cpu);
    }

    /// It must arrive, arrive again while the line is up, and not after the line is down.
    fn level(&mut self, cpu: &mut Cpu, instant: &mut dyn FnMut(&mut Cpu)) {
        line(1);
        instant(cpu);
        self.verify("with interrupts off");
        self.low += 1;
        self.collect(cpu);
        lapic::end_of_interrupt();
        instant(cpu);
        self.low += 1;
        self.collect(cpu);
        line(2);
        instant(cpu);
        lapic::end_of_interrupt();
        self.collect(cpu);
    }

    fn pic_edge(&mut self, cpu: &mut Cpu, instant: &mut dyn FnMut(&mut Cpu)) {
        pic_line(1);
        instant(cpu);
        self.verify("with interrupts off");
        self.pic += 1;
        self.collect(cpu);
        // Another waits while the first is in service.
        pic_line(2);
        pic_line(1);
        instant(cpu);
        self.collect(cpu);
        end_pic();
        self.pic += 1;
        self.collect(cpu);
        pic_line(2);
        end_pic();
        self.collect(cpu);
    }

    fn pic_level(&mut self, cpu: &mut Cpu, instant: &mut dyn FnMut(&mut Cpu)) {
        pic_line(1);
        instant(cpu);
        self.verify("with interrupts off");
        self.pic += 1;
        self.collect(cpu);
        end_pic();
        self.pic += 1;
        self.collect(cpu);
        pic_line(2);
        instant(cpu);
        end_pic();
        self.collect(cpu);
    }

    fn ipi(&mut self, cpu: &mut Cpu, instant: &mut dyn FnMut(&mut Cpu)) {
        lapic::send_to(cpu.index(), LOW);
        instant(cpu);
        self.verify("with interrupts off");
        self.low += 1;
        self.collect(cpu);
    }

    /// An NMI must arrive even with interrupts off.
    fn nmi(&mut self, cpu: &mut Cpu, instant: &mut dyn FnMut(&mut Cpu)) {
        lapic::send_nmi_to(cpu.index());
        self.nmi += 1;
        self.wait(cpu);
        instant(cpu);
        self.verify("that nothing masks");
    }

    /// The host sends an NMI at each marker.
    fn host_nmi(&mut self, cpu: &mut Cpu, marker: u32, instant: &mut dyn FnMut(&mut Cpu)) {
        self.nmi += u64::from((1..=cpu.options().markers).contains(&marker));
        instant(cpu);
        self.wait(cpu);
        self.verify("that the host sent");
    }

    /// The host triggers the line at each marker.
    fn irqfd(&mut self, cpu: &mut Cpu, marker: u32, instant: &mut dyn FnMut(&mut Cpu)) {
        self.verify("with interrupts off");
        self.low += u64::from((1..=cpu.options().markers).contains(&marker));
        instant(cpu);
        self.collect(cpu);
    }

    fn two(&mut self, cpu: &mut Cpu, instant: &mut dyn FnMut(&mut Cpu)) {
        lapic::send_to(cpu.index(), LOW);
        lapic::send_to(cpu.index(), HIGH);
        instant(cpu);
        self.verify("with interrupts off");
        self.low += 1;
        self.high += 1;
        self.collect(cpu);
    }

    /// The interrupt of lower priority must wait for the end of the higher one.
    fn service(&mut self, cpu: &mut Cpu, instant: &mut dyn FnMut(&mut Cpu)) {
        lapic::send_to(cpu.index(), HIGH);
        self.high += 1;
        self.collect(cpu);
        lapic::send_to(cpu.index(), LOW);
        instant(cpu);
        self.collect(cpu);
        lapic::end_of_interrupt();
        self.low += 1;
        self.collect(cpu);
    }

    fn shadow(&mut self, cpu: &mut Cpu, instant: &mut dyn FnMut(&mut Cpu), open: fn()) {
        lapic::send_to(cpu.index(), LOW);
        instant(cpu);
        self.verify("with interrupts off");
        self.low += 1;
        open();
        self.verify("behind a shadow");
    }
}
