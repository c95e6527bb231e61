//! Holds its last vCPU in a mode that an update must preserve, then lets it return to CPL3.
//!
//! `test=` selects the mode: real (mode), protected (mode, without paging), no-idt (64-bit mode
//! before the IDT is loaded), cpl0 (after that), hlt (asleep until an interrupt), sipi (waiting for
//! SIPI), host-start (running, and the host restarts it at marker 1, at 0x9000). vCPU 0 restarts
//! the other vCPU in that mode and reaches marker 1; then it lets the other continue to CPL3, and
//! reaches marker 2 when the other has arrived. Needs two vCPUs.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{
    AtomicU32,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use runtime::arch::rdtsc;
use runtime::damage::{self, verify};
use runtime::interrupts::{self, Eoi};
use runtime::mailbox::{CpuMailbox, MAILBOX_GPA, Mailbox};
use runtime::{Cpu, cpl0, lapic, mailbox};

/// The page at which the vCPU starts in real mode.
const PAGE: usize = 0x9000;
/// Offset in that page of the data shared by both vCPUs.
const TALK: usize = 0xf00;
const VECTOR: u8 = 0x58;
/// The value of a local vector of the LAPIC after INIT.
const MASKED: u64 = 1 << 16;

/// TSC ticks after which a vCPU that does not arrive counts as lost: about five seconds.
const PATIENCE: u64 = 15 << 30;
/// TSC ticks that one check counts at most, so that a stopped guest does not time out.
const ONE_LOOK: u64 = 1 << 24;

/// The data shared by both vCPUs.
#[repr(C)]
struct Talk {
    /// 1 real, 2 protected, 3 no-idt, 4 cpl0.
    mode: AtomicU32,
    /// Not zero: continue to CPL3.
    leave: AtomicU32,
    /// Iterations of the loop in that mode.
    turns: AtomicU32,
    /// Not zero: a register had a wrong value.
    wrong: AtomicU32,
}

// Each loop checks two registers, has heartbeats, and exits to the VMM once per iteration: a vCPU
// that spins at CPL0 stalls hosts that emulate it.
global_asm!(
    ".macro turn talk, heartbeat",
    "    incl \\talk + 8",
    "    addl $1, \\heartbeat",
    "    adcl $0, \\heartbeat + 4",
    "    inb $0x80, %al",
    "    cmpl $0x12345678, %ebx",
    "    jne 2f",
    "    cmpl $0x9abcdef0, %esi",
    "    je 3f",
    "2:  movl $1, \\talk + 12",
    "3:  cmpl $0, \\talk + 4",
    ".endm",
    "    .section .text.modes, \"ax\", @progbits",
    "    .code16",
    "modes_start:",
    "    cli",
    "    cld",
    "    movw %cs, %ax",
    "    movw %ax, %ds",
    "    movw ${mailbox} >> 4, %ax",
    "    movw %ax, %es",
    "    movl $0x12345678, %ebx",
    "    movl $0x9abcdef0, %esi",
    "    cmpl $1, {talk}",
    "    jne 9f",
    "1:  incl {talk} + 8",
    "    addl $1, %es:{beat}",
    "    adcl $0, %es:{beat} + 4",
    "    inb $0x80, %al",
    "    movw %es, %ax",
    "    cmpw ${mailbox} >> 4, %ax",
    "    jne 2f",
    "    cmpl $0x12345678, %ebx",
    "    jne 2f",
    "    cmpl $0x9abcdef0, %esi",
    "    je 3f",
    "2:  movl $1, {talk} + 12",
    "3:  cmpl $0, {talk} + 4",
    "    je 1b",
    "9:  lgdtl modes_gdt - modes_start",
    "    movl $0x11, %eax",
    "    movl %eax, %cr0",
    "    ljmpl $0x08, $modes_protected",
    "    .balign 4",
    "modes_gdt:",
    "    .short 0xffff",
    "    .long gdt",
    "modes_end:",
    "    .code32",
    "modes_protected:",
    "    movl $0x18, %eax",
    "    movl %eax, %ds",
    "    cmpl $2, {page} + {talk}",
    "    jne 9f",
    "1:  movl %cr0, %eax",
    "    testl %eax, %eax",
    "    jns 4f",
    "    movl $1, {page} + {talk} + 12",
    "4:  turn {page} + {talk}, {mailbox} + {beat}",
    "    je 1b",
    "9:  cmpl $2, {page} + {talk}",
    "    jbe ap_entry",
    // As the shim does, but without an IDT.
    "    movl $0x620, %eax",
    "    movl %eax, %cr4",
    "    movl $pml4, %eax",
    "    movl %eax, %cr3",
    "    movl $0xc0000080, %ecx",
    "    xorl %edx, %edx",
    "    movl $0x100, %eax",
    "    wrmsr",
    "    movl $0x80010033, %eax",
    "    movl %eax, %cr0",
    "    ljmpl $0x10, $modes_long",
    "    .code64",
    "modes_long:",
    "    cmpl $4, {page} + {talk}",
    "    jne 1f",
    "    lidt idt_pointer",
    "1:  turn {page} + {talk}, {mailbox} + {beat}",
    "    je 1b",
    "    xorl %edi, %edi",
    "    jmp long_mode",
    talk = const TALK,
    page = const PAGE,
    mailbox = const MAILBOX_GPA,
    beat = const offset_of!(Mailbox, cpus) + size_of::<CpuMailbox>(),
    options(att_syntax)
);

unsafe extern "C" {
    static modes_start: u8;
    static modes_end: u8;
}

/// How often the last vCPU has reached CPL3.
static ARRIVALS: AtomicU32 = AtomicU32::new(0);

fn talk() -> &'static Talk {
    // SAFETY: that page is low RAM that the guest uses for nothing else; all fields are atomics.
    unsafe { &*core::ptr::with_exposed_provenance(PAGE + TALK) }
}

fn prepare(_: &mut Cpu) {
    interrupts::expect(VECTOR, Eoi::Lapic);
}

fn run(cpu: &mut Cpu) -> ! {
    assert!(cpu.options().cpus == 2, "this guest needs two vCPUs");
    if cpu.index() == 1 {
        let arrivals = ARRIVALS.fetch_add(1, SeqCst);
        if cpu.wants_only("host-start") {
            if arrivals > 0 {
                let line = lapic::nmi_line();
                verify(MASKED, line.into(), format_args!("the LAPIC's LINT1 after INIT"));
            }
            lapic::open_nmi_line();
        }
        if cpu.wants_only("hlt") {
            cpl0::halt();
            ARRIVALS.fetch_add(1, SeqCst);
        }
        loop {
            cpu.tick();
        }
    }
    await_that(cpu, "the last vCPU at CPL3", || ARRIVALS.load(SeqCst) == 1);
    match cpu.options().test.as_str() {
        "real" => hold(cpu, 1),
        "protected" => hold(cpu, 2),
        "no-idt" => hold(cpu, 3),
        "cpl0" => hold(cpu, 4),
        "sipi" => wait_for_start(cpu),
        "host-start" => wait_for_host(cpu),
        "hlt" => sleep(cpu),
        other => panic!("test={other} is none of this guest's"),
    }
    await_that(cpu, "the last vCPU at CPL3 again", || ARRIVALS.load(SeqCst) == 2);
    cpu.marker(2);
    cpu.end();
    loop {
        cpu.tick();
    }
}

fn place_code() {
    let (start, end) = (&raw const modes_start, &raw const modes_end);
    let to = core::ptr::with_exposed_provenance_mut::<u8>(PAGE);
    // SAFETY: the symbols delimit code of the image; the page is used for nothing else.
    unsafe { to.copy_from_nonoverlapping(start, end.addr() - start.addr()) };
}

fn start(mode: u32) {
    prepare_start(mode);
    lapic::start_cpu_at(1, PAGE);
}

fn prepare_start(mode: u32) {
    place_code();
    let talk = talk();
    talk.leave.store(0, Relaxed);
    talk.turns.store(0, Relaxed);
    talk.wrong.store(0, Relaxed);
    talk.mode.store(mode, Release);
}

fn hold(cpu: &mut Cpu, mode: u32) {
    lapic::send_init_to(1);
    start(mode);
    await_turns(cpu);
    cpu.marker_with(1, |cpu| {
        answer_for_last();
        cpu.tick();
    });
    await_turns(cpu);
    verify(0, talk().wrong.load(Acquire).into(), format_args!("wrong registers in mode {mode}"));
    talk().leave.store(1, Release);
}

/// Waits until the last vCPU has gone through its loop several times.
fn await_turns(cpu: &mut Cpu) {
    let turns = talk().turns.load(Acquire);
    await_that(cpu, "turns of the last vCPU", || {
        talk().turns.load(Acquire).wrapping_sub(turns) > 5
    });
}

fn wait_for_start(cpu: &mut Cpu) {
    lapic::send_init_to(1);
    cpu.marker_with(1, tick_for_both);
    verify(1, ARRIVALS.load(SeqCst).into(), format_args!("arrivals of a vCPU that waits for SIPI"));
    start(1);
    await_turns(cpu);
    talk().leave.store(1, Release);
}

/// The host sends INIT and SIPI, perhaps while this guest is stopped.
fn wait_for_host(cpu: &mut Cpu) {
    prepare_start(1);
    let halts = core::ptr::with_exposed_provenance_mut::<u8>(PAGE + 0xfff0);
    // SAFETY: the vCPU arrives here if it is started with the IP of a reset: low RAM that the
    // guest uses for nothing else. `hlt` keeps it there.
    unsafe { halts.write_bytes(0xf4, 16) };
    cpu.marker_with(1, |cpu| {
        answer_for_last();
        cpu.tick();
    });
    await_turns(cpu);
    verify(0, talk().wrong.load(Acquire).into(), format_args!("wrong registers of a start"));
    talk().leave.store(1, Release);
}

fn sleep(cpu: &mut Cpu) {
    cpu.marker_with(1, tick_for_both);
    verify(1, ARRIVALS.load(SeqCst).into(), format_args!("arrivals of a vCPU that sleeps"));
    lapic::send_to(1, VECTOR);
}

/// Acknowledges a gap request for the last vCPU, which has no gaps to forget.
fn answer_for_last() {
    let page = mailbox();
    page.cpus[1].gap_ack.store(page.gap_request.load(Relaxed), Release);
}

/// Adds heartbeats for the last vCPU, too, which must not run now.
fn tick_for_both(cpu: &mut Cpu) {
    answer_for_last();
    mailbox().cpus[1].heartbeat.fetch_add(1, Relaxed);
    cpu.tick();
}

fn await_that(cpu: &mut Cpu, what: &str, condition: impl Fn() -> bool) {
    let mut waited = 0;
    let mut last = rdtsc();
    while !condition() {
        cpu.tick();
        let now = rdtsc();
        waited += (now - last).min(ONE_LOOK);
        last = now;
        if waited > PATIENCE {
            damage::wrong(1, 0, format_args!("{what}: lost"));
        }
    }
}
