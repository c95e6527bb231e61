//! Holds known values in every register of every vCPU, and checks them round by round.
//!
//! It proves that KVM's vCPU state is preserved. A round loads the registers that CPL3 can access,
//! spins, stores and compares them; what only CPL0 can access (debug registers, MSRs, bases, CPUID)
//! is compared at intervals. `test=` selects one part: gpr, selectors, segments, x87, sse, avx,
//! avx512, xcr0, debug, msrs, cpuid; without it, all available parts are tested. Marker n comes
//! after n hundred rounds of vCPU 0, which continue while it waits.

#![no_std]
#![no_main]

#[path = "../runtime/mod.rs"]
mod runtime;

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use runtime::cpl0::{self, DEBUG_REGISTERS};
use runtime::damage::{unavailable, verify};
use runtime::words::Words;
use runtime::{Cpu, shim};

/// Iterations of one spin, which takes longer than the rest of a round.
const SPINS: u64 = 20_000;
/// Rounds between two checks of what only CPL0 can access.
const SLOW: u64 = 32;
/// Such checks between two of CPUID.
const CPUID_EVERY: u64 = 32;
const ROUNDS_PER_MARKER: u64 = 100;

const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;
const XCR0_AVX: u64 = 0b111;
const XCR0_AVX512: u64 = 0b1110_0111;

const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;

/// The registers that a round loads and stores; the assembly below depends on the layout.
#[repr(C, align(64))]
struct State {
    zmm: [[u64; 8]; 32],
    k: [u64; 8],
    /// In the format of `fnsave`.
    x87: [u8; 108],
    mxcsr: u32,
    /// RFLAGS, then RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8 to R15; from the top of `stack` down.
    general: [u64; 16],
    /// DS, ES, FS, GS.
    selectors: [u16; 4],
    /// The stack pointer of the Rust code while the round runs.
    rsp: u64,
    /// The stack during a round: the registers are pushed below `top`.
    stack: [u64; 32],
    top: [u64; 0],
}

const GENERAL: [&str; 16] = [
    "RFLAGS", "RAX", "RCX", "RDX", "RBX", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12",
    "R13", "R14", "R15",
];

/// The available size of the vector registers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
#[repr(u32)]
enum Vectors {
    Sse = 0,
    Avx = 1,
    Avx512 = 2,
}

global_asm!(
    "    .text",
    // (values, where to store, Vectors)
    "registers_round:",
    "    pushq %rbx",
    "    pushq %rbp",
    "    pushq %r12",
    "    pushq %r13",
    "    pushq %r14",
    "    pushq %r15",
    "    movq %rsp, {rsp}(%rsi)",
    "    movl %edx, {level}(%rsi)",
    "    movw {selectors}(%rdi), %ds",
    "    movw {selectors} + 2(%rdi), %es",
    "    frstor {x87}(%rdi)",
    "    ldmxcsr {mxcsr}(%rdi)",
    "    cmpl $1, %edx",
    "    ja 3f",
    "    je 2f",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "    movups {zmm} + \\n * 64(%rdi), %xmm\\n",
    ".endr",
    "    jmp 4f",
    "2:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "    vmovups {zmm} + \\n * 64(%rdi), %ymm\\n",
    ".endr",
    "    jmp 4f",
    "3:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7",
    "    kmovq {k} + \\n * 8(%rdi), %k\\n",
    ".endr",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
    "    vmovups {zmm} + \\n * 64(%rdi), %zmm\\n",
    ".endr",
    "4:",
    "    leaq {top}(%rsi), %rsp",
    "    pushq {general}(%rdi)",
    "    popfq",
    "    movq {general} + 8(%rdi), %rax",
    "    movq {general} + 16(%rdi), %rcx",
    "    movq {general} + 24(%rdi), %rdx",
    "    movq {general} + 32(%rdi), %rbx",
    "    movq {general} + 40(%rdi), %rbp",
    "    movq {general} + 48(%rdi), %rsi",
    "    movq {general} + 64(%rdi), %r8",
    "    movq {general} + 72(%rdi), %r9",
    "    movq {general} + 80(%rdi), %r10",
    "    movq {general} + 88(%rdi), %r11",
    "    movq {general} + 96(%rdi), %r12",
    "    movq {general} + 104(%rdi), %r13",
    "    movq {general} + 112(%rdi), %r14",
    "    movq {general} + 120(%rdi), %r15",
    "    movq {general} + 56(%rdi), %rdi",
    // Changes no flag, and no register but RCX.
    "5:  loop 5b",
    "    pushfq",
    ".irp register, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15",
    "    pushq %\\register",
    ".endr",
    "    cld",
    "    leaq 128 - {top}(%rsp), %rsi",
    // CR0.AM is off, but flags that were set for the test need not stay set.
    "    pushq $2",
    "    popfq",
    "    cmpl $1, {level}(%rsi)",
    "    ja 8f",
    "    je 7f",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "    movups %xmm\\n, {zmm} + \\n * 64(%rsi)",
    ".endr",
    "    jmp 9f",
    "7:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "    vmovups %ymm\\n, {zmm} + \\n * 64(%rsi)",
    ".endr",
    "    vzeroupper",
    "    jmp 9f",
    "8:",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7",
    "    kmovq %k\\n, {k} + \\n * 8(%rsi)",
    ".endr",
    ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31",
    "    vmovups %zmm\\n, {zmm} + \\n * 64(%rsi)",
    ".endr",
    "    vzeroupper",
    "9:",
    "    stmxcsr {mxcsr}(%rsi)",
    "    fnsave {x87}(%rsi)",
    "    movw %ds, {selectors}(%rsi)",
    "    movw %es, {selectors} + 2(%rsi)",
    "    movw %fs, {selectors} + 4(%rsi)",
    "    movw %gs, {selectors} + 6(%rsi)",
    "    movq {rsp}(%rsi), %rsp",
    "    movl $0x1f80, -4(%rsp)",
    "    ldmxcsr -4(%rsp)",
    "    popq %r15",
    "    popq %r14",
    "    popq %r13",
    "    popq %r12",
    "    popq %rbp",
    "    popq %rbx",
    "    ret",
    zmm = const offset_of!(State, zmm),
    k = const offset_of!(State, k),
    x87 = const offset_of!(State, x87),
    mxcsr = const offset_of!(State, mxcsr),
    general = const offset_of!(State, general),
    selectors = const offset_of!(State, selectors),
    rsp = const offset_of!(State, rsp),
    level = const offset_of!(State, stack),
    top = const offset_of!(State, top),
    options(att_syntax)
);

unsafe extern "sysv64" {
    fn registers_round(values: *const State, found: *mut State, vectors: u32);
}

/// MSRs whose given bits can hold any value, without an effect on a guest that does not use them.
const MSRS: [(u32, &str, u64); 13] = [
    (0x174, "IA32_SYSENTER_CS", 0xfff8),
    (0x175, "IA32_SYSENTER_ESP", LOW_HALF),
    (0x176, "IA32_SYSENTER_EIP", LOW_HALF),
    (0xc000_0081, "IA32_STAR", u64::MAX),
    (0xc000_0082, "IA32_LSTAR", LOW_HALF),
    (0xc000_0083, "IA32_CSTAR", LOW_HALF),
    (0xc000_0084, "IA32_FMASK", 0xffff_ffff),
    (0xc000_0102, "IA32_KERNEL_GS_BASE", LOW_HALF),
    (0xc000_0103, "IA32_TSC_AUX", 0xffff_ffff),
    (0x277, "IA32_PAT", 0x0101_0101_0101_0101),
    (0x200, "IA32_MTRR_PHYSBASE0", 0x000f_f000),
    (0x250, "IA32_MTRR_FIX64K_00000", 0x0404_0404_0404_0404),
    (0x3b, "IA32_TSC_ADJUST", 0),
];
/// Canonical addresses.
const LOW_HALF: u64 = 0x0000_7fff_ffff_ffff;

/// Bits of DR0 to DR3 that can hold any value. DR6 and DR7 below: their fixed bits, with no
/// breakpoint enabled.
const DEBUG_ADDRESS: u64 = LOW_HALF;
const DR6_FIXED: u64 = 0xffff_0ff0;
const DR7_FIXED: u64 = 0x400;
/// Types and lengths of the disabled breakpoints: write or read/write, 1, 2 or 4 bytes.
const DR7_FREE: u64 = 0xdd5d_0000;

/// The targets of each vCPU's segment bases.
static ANCHORS: [[u64; 2]; 8] = {
    let mut anchors = [[0; 2]; 8];
    let mut cpu = 0;
    while cpu < 8 {
        anchors[cpu] = [0x1111 * (cpu as u64 + 1), 0x0101_0000 * (cpu as u64 + 1)];
        cpu += 1;
    }
    anchors
};

fn prepare(cpu: &mut Cpu) {
    if cpu.wants_only("xcr0") && xcr0_is_the_hosts() {
        unavailable(format_args!("XCR0 of the VM's own (CPL3 runs with the host's)"));
    }
    if cpu.wants_only("selectors") && !selectors_are_kept() {
        unavailable(format_args!("DS and ES (an exit at CPL3 leaves null selectors)"));
    }
    for (test, level) in [("avx", Vectors::Avx), ("avx512", Vectors::Avx512)] {
        if cpu.wants_only(test) && enable_vectors() < level {
            unavailable(format_args!("{test}"));
        }
    }
}

/// Whether DS keeps its value across an exit to the VMM.
fn selectors_are_kept() -> bool {
    let ds: u32;
    // SAFETY: in 64-bit mode nothing depends on DS; the port does nothing.
    unsafe {
        asm!("mov ds, {0:e}", "out 0x80, al", "mov {0:e}, ds", inout(reg) 0x23_u32 => ds);
    }
    ds & 0xffff == 0x23
}

/// Whether CPL3 has extended state although it is not enabled for this VM.
fn xcr0_is_the_hosts() -> bool {
    cpl0::cr4() & CR4_OSXSAVE == 0 && xcr0_at_cpl3().is_some()
}

/// Reads XCR0 at CPL3; `None` if that raises an exception.
fn xcr0_at_cpl3() -> Option<u64> {
    let (low, high): (u32, u32);
    shim::arm_fixup(0);
    // SAFETY: an exception at `xgetbv` continues after it.
    unsafe {
        asm!("lea {at}, [rip + 2f]", "mov qword ptr [{slot}], {at}", "xgetbv", "2:",
             at = out(reg) _, slot = in(reg) shim::fixup_slot(), in("ecx") 0,
             inlateout("eax") 0 => low, inlateout("edx") 0 => high);
    }
    match shim::disarm_fixup() {
        None => Some(u64::from(high) << 32 | u64::from(low)),
        Some(_) => None,
    }
}

/// Enables the available vector registers and returns their size.
fn enable_vectors() -> Vectors {
    let [_, _, ecx, _] = cpl0::cpuid(1, 0);
    let is_announced = |bit: u32| ecx >> bit & 1 == 1;
    if !(is_announced(26) && is_announced(28)) {
        return Vectors::Sse;
    }
    let [_, ebx, _, _] = cpl0::cpuid(7, 0);
    // Foundation, and BW for 64-bit masks.
    let has_avx512 = ebx >> 16 & 1 == 1 && ebx >> 30 & 1 == 1;
    let xcr0 = if xcr0_is_the_hosts() {
        // Setting it at CPL0 ends the VM on this host.
        xcr0_at_cpl3().unwrap_or(1)
    } else {
        let [eax, _, _, edx] = cpl0::cpuid(0xd, 0);
        let all = u64::from(edx) << 32 | u64::from(eax);
        let wanted = all & if has_avx512 { XCR0_AVX512 } else { XCR0_AVX };
        let enabled = cpl0::set_cr4(cpl0::cr4() | CR4_OSXSAVE);
        if enabled.and_then(|()| cpl0::xsetbv(0, wanted)).is_err() {
            return Vectors::Sse;
        }
        wanted
    };
    match xcr0 {
        _ if has_avx512 && xcr0 & XCR0_AVX512 == XCR0_AVX512 => Vectors::Avx512,
        _ if xcr0 & XCR0_AVX == XCR0_AVX => Vectors::Avx,
        _ => Vectors::Sse,
    }
}

fn run(cpu: &mut Cpu) -> ! {
    let mut rounds = Rounds::new(cpu);
    let mut done = 0;
    let markers = if cpu.index() == 0 { cpu.options().markers } else { 0 };
    for n in 1..=markers {
        for _ in 0..ROUNDS_PER_MARKER {
            rounds.one(cpu);
        }
        cpu.marker_with(n, |cpu| rounds.one(cpu));
        done = n;
    }
    if cpu.index() == 0 && done == markers && markers > 0 {
        cpu.end();
    }
    loop {
        rounds.one(cpu);
    }
}

/// The rounds of one vCPU.
struct Rounds {
    words: Words,
    number: u64,
    vectors: Vectors,
    values: State,
    found: State,
    xcr0: Option<u64>,
    selectors: bool,
    /// The current values; `None` if the host accepts no value.
    msrs: [Option<u64>; MSRS.len()],
    debug: [Option<u64>; DEBUG_REGISTERS.len()],
    /// A digest of each CPUID leaf.
    cpuid: [u64; CPUID_LEAVES],
}

impl Rounds {
    fn new(cpu: &Cpu) -> Self {
        let vectors = match cpu.options().test.as_str() {
            "sse" => Vectors::Sse,
            "avx" => {
                enable_vectors();
                Vectors::Avx
            }
            _ => enable_vectors(),
        };
        // If the CPU does not have it, the MSR sets the bases.
        let _ = cpl0::set_cr4(cpl0::cr4() | CR4_FSGSBASE);
        let mut rounds = Self {
            words: Words::new(cpu.options().seed),
            number: 0,
            vectors,
            values: EMPTY,
            found: EMPTY,
            xcr0: xcr0_at_cpl3(),
            selectors: selectors_are_kept(),
            msrs: [None; MSRS.len()],
            debug: [None; DEBUG_REGISTERS.len()],
            cpuid: Self::cpuid_now(),
        };
        rounds.write_slow(cpu);
        rounds
    }

    /// A value that depends on vCPU, round and place.
    fn word(&self, cpu: &Cpu, place: u64) -> u64 {
        self.words.first((cpu.index() as u64) << 12 | place << 16, self.number)
    }

    fn one(&mut self, cpu: &mut Cpu) {
        self.fill(cpu);
        // SAFETY: both are complete states, and the stack in `found` has room for all registers.
        unsafe {
            registers_round(&raw const self.values, &raw mut self.found, self.vectors as u32)
        };
        self.compare(cpu);
        self.number += 1;
        if self.number.is_multiple_of(SLOW) {
            self.check_slow(cpu);
            self.write_slow(cpu);
        }
        cpu.tick();
    }

    fn fill(&mut self, cpu: &Cpu) {
        let base = self.word(cpu, 0);
        let word = |place: u64| {
            base.wrapping_add(place.wrapping_mul(runtime::words::STEP)).rotate_left(place as u32)
        };
        for (n, register) in self.values.zmm.iter_mut().enumerate() {
            for (part, value) in register.iter_mut().enumerate() {
                *value = word((n * 8 + part) as u64);
            }
        }
        for (n, value) in self.values.k.iter_mut().enumerate() {
            *value = word(256 + n as u64);
        }
        for (n, value) in self.values.general.iter_mut().enumerate() {
            *value = word(272 + n as u64);
        }
        // Any of CF, PF, AF, ZF, SF, DF, OF, AC and ID; bit 1 is always set.
        self.values.general[0] = self.values.general[0] & 0x24_0cd5 | 2;
        self.values.general[2] = SPINS;
        // Exceptions masked; some of their flags, rounding, flush to zero.
        self.values.mxcsr = 0x1f80 | word(290) as u32 & 0xe07f;
        self.fill_x87(word(291), word(292));
        self.values.selectors = if base & 1 == 0 { [0x23, 0, 0, 0x23] } else { [0, 0x23, 0, 0x23] };
    }

    fn fill_x87(&mut self, word: u64, bits: u64) {
        let area = &mut self.values.x87;
        area.fill(0);
        // Control: exceptions masked, extended precision, any rounding. Status: TOP, condition
        // codes, and flags of masked exceptions. Tag: all in use.
        area[..2].copy_from_slice(&(0x037f | bits as u16 & 0x0c00).to_le_bytes());
        area[4..6].copy_from_slice(&((bits >> 16) as u16 & 0x7f3f).to_le_bytes());
        for n in 0..8 {
            let at = 28 + 10 * n;
            // A normal number: the top bit of the mantissa set, an exponent around 0.
            let mantissa = word.rotate_left(7 * n as u32) | 1 << 63;
            area[at..at + 8].copy_from_slice(&mantissa.to_le_bytes());
            area[at + 8..at + 10].copy_from_slice(&(0x3fff + n as u16).to_le_bytes());
        }
        // The tags that the processor computes for these: valid, none zero or special.
        area[8..10].copy_from_slice(&0_u16.to_le_bytes());
    }

    fn compare(&self, cpu: &Cpu) {
        let (values, found) = (&self.values, &self.found);
        if cpu.wants("gpr") {
            for (n, name) in GENERAL.iter().enumerate() {
                let expected = match n {
                    // IF is the guest's own.
                    0 => values.general[0],
                    2 => 0,
                    n => values.general[n],
                };
                let at = found.stack.len() - 1 - n;
                let mask = if n == 0 { !0x200 } else { u64::MAX };
                verify(expected, found.stack[at] & mask, format_args!("{name}"));
            }
        }
        if cpu.wants("sse") || cpu.wants("avx") || cpu.wants("avx512") {
            verify(values.mxcsr.into(), found.mxcsr.into(), format_args!("MXCSR"));
            let (registers, parts) = match self.vectors {
                Vectors::Sse => (16, 2),
                Vectors::Avx => (16, 4),
                Vectors::Avx512 => (32, 8),
            };
            for n in 0..registers {
                for part in 0..parts {
                    let (a, b) = (values.zmm[n][part], found.zmm[n][part]);
                    verify(a, b, format_args!("word {part} of vector register {n}"));
                }
            }
            if self.vectors == Vectors::Avx512 {
                for n in 0..8 {
                    verify(values.k[n], found.k[n], format_args!("K{n}"));
                }
            }
        }
        if cpu.wants("x87") {
            // Not the pointers: their selectors are not preserved.
            for (at, name) in [(0, "FCW"), (4, "FSW"), (8, "FTW")] {
                let word = |area: &[u8; 108]| u16::from_le_bytes([area[at], area[at + 1]]).into();
                verify(word(&values.x87), word(&found.x87), format_args!("{name}"));
            }
            for n in 0..8 {
                for (at, len) in [(28 + 10 * n, 8), (36 + 10 * n, 2)] {
                    let number = |area: &[u8; 108]| {
                        area[at..at + len].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
                    };
                    verify(number(&values.x87), number(&found.x87), format_args!("ST({n})"));
                }
            }
        }
        if self.selectors && cpu.wants("selectors") {
            for (n, name) in ["DS", "ES"].iter().enumerate() {
                let (a, b) = (values.selectors[n], found.selectors[n]);
                verify(a.into(), b.into(), format_args!("{name}"));
            }
        }
        if cpu.wants("segments") {
            let (fs, gs): (u64, u64);
            // SAFETY: both bases point to the anchors of this vCPU.
            unsafe { asm!("mov {}, fs:[0]", "mov {}, gs:[0]", out(reg) fs, out(reg) gs) };
            let [a, b] = ANCHORS[cpu.index()];
            verify(a, fs, format_args!("what FS points to"));
            verify(b, gs, format_args!("what GS points to"));
        }
        if cpu.wants("xcr0")
            && let Some(xcr0) = self.xcr0
        {
            verify(xcr0, xcr0_at_cpl3().unwrap_or(0), format_args!("XCR0"));
        }
    }

    /// Writes new values to what only CPL0 can access.
    fn write_slow(&mut self, cpu: &Cpu) {
        let anchors = &ANCHORS[cpu.index()];
        for (msr, anchor) in [FS_BASE, GS_BASE].into_iter().zip(anchors) {
            let wrote = cpl0::wrmsr(msr, (&raw const *anchor).addr() as u64);
            assert!(wrote.is_ok(), "MSR {msr:#x} cannot be written");
        }
        if cpu.wants("msrs") {
            for (n, (msr, _, bits)) in MSRS.into_iter().enumerate() {
                let value = self.word(cpu, 1 + n as u64) & bits;
                let taken = cpl0::wrmsr(msr, value).is_ok() && cpl0::rdmsr(msr) == Ok(value);
                self.msrs[n] = taken.then_some(value);
            }
        }
        if cpu.wants("debug") {
            for (n, register) in DEBUG_REGISTERS.into_iter().enumerate() {
                let word = self.word(cpu, 32 + n as u64);
                let value = match register {
                    6 => DR6_FIXED | word & 0xf,
                    7 => DR7_FIXED | word & DR7_FREE,
                    _ => word & DEBUG_ADDRESS,
                };
                let taken = cpl0::set_debug_register(n, value).is_ok();
                self.debug[n] = taken.then_some(value);
            }
        }
    }

    fn check_slow(&self, cpu: &Cpu) {
        if cpu.wants("segments") {
            for ((msr, name), anchor) in
                [(FS_BASE, "FS base"), (GS_BASE, "GS base")].into_iter().zip(&ANCHORS[cpu.index()])
            {
                let found = cpl0::rdmsr(msr).unwrap_or(0);
                verify((&raw const *anchor).addr() as u64, found, format_args!("{name}"));
            }
        }
        for ((msr, name, _), value) in MSRS.into_iter().zip(self.msrs) {
            if let Some(value) = value {
                verify(value, cpl0::rdmsr(msr).unwrap_or(0), format_args!("{name}"));
            }
        }
        for (n, value) in self.debug.into_iter().enumerate() {
            if let Some(value) = value {
                let found = cpl0::debug_register(n).unwrap_or(0);
                verify(value, found, format_args!("DR{}", DEBUG_REGISTERS[n]));
            }
        }
        // A hundred leaves: on hosts that emulate CPL0 this takes longer than everything else.
        let is_turn = self.number.is_multiple_of(SLOW * CPUID_EVERY) || cpu.wants_only("cpuid");
        if is_turn && cpu.wants("cpuid") {
            for (place, (then, now)) in self.cpuid.into_iter().zip(Self::cpuid_now()).enumerate() {
                let leaf = cpuid_leaf(place);
                verify(then, now, format_args!("digest of CPUID leaf {leaf:#x}"));
            }
        }
    }

    /// Reads a digest of each leaf at CPL0: at CPL3 some hosts show the physical processor.
    fn cpuid_now() -> [u64; CPUID_LEAVES] {
        core::array::from_fn(|place| {
            let leaf = cpuid_leaf(place);
            let last = cpl0::cpuid(leaf & 0xffff_0000, 0)[0];
            if leaf > last {
                return 0;
            }
            let subleaves = if matches!(leaf, 4 | 7 | 0xb | 0xd) { 3 } else { 1 };
            (0..subleaves)
                .flat_map(|subleaf| cpl0::cpuid(leaf, subleaf))
                .fold(0, |sum, register| (sum ^ u64::from(register)).wrapping_mul(0x0100_0000_01b3))
        })
    }
}

/// Number of leaves to check in each of the three ranges.
const CPUID_RANGE: usize = 0x20;
const CPUID_LEAVES: usize = 3 * CPUID_RANGE;

fn cpuid_leaf(place: usize) -> u32 {
    [0, 0x4000_0000, 0x8000_0000][place / CPUID_RANGE] + (place % CPUID_RANGE) as u32
}

const EMPTY: State = State {
    zmm: [[0; 8]; 32],
    k: [0; 8],
    x87: [0; 108],
    mxcsr: 0,
    general: [0; 16],
    selectors: [0; 4],
    rsp: 0,
    stack: [0; 32],
    top: [],
};
