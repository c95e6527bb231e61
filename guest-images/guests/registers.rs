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

#[path = "registers/privileged.rs"]
mod privileged;
#[path = "registers/round.rs"]
mod round;

use core::arch::asm;

use privileged::{ANCHORS, Privileged};
use round::{EMPTY, GENERAL, State, Vectors};
use runtime::cpl0;
use runtime::damage::{unavailable, verify};
use runtime::words::Words;
use runtime::{Cpu, shim};

/// Iterations of one spin, which takes longer than the rest of a round.
const SPINS: u64 = 20_000;
/// Rounds between two checks of what only CPL0 can access.
const SLOW: u64 = 32;
const ROUNDS_PER_MARKER: u64 = 100;

const IOPL: u64 = 0x3000;
const CR4_FSGSBASE: u64 = 1 << 16;
const CR4_OSXSAVE: u64 = 1 << 18;
const XCR0_AVX: u64 = 0b111;
const XCR0_AVX512: u64 = 0b1110_0111;

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

fn flags() -> u64 {
    let flags;
    // SAFETY: reads the flags.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags) };
    flags
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
    /// Flags that `popfq` does not change at CPL3.
    kept_flags: u64,
    privileged: Privileged,
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
            kept_flags: flags() & IOPL,
            privileged: Privileged::new(),
        };
        rounds.write_privileged(cpu);
        rounds
    }

    fn write_privileged(&mut self, cpu: &Cpu) {
        self.privileged.write(cpu, |place| word(&self.words, cpu, place, self.number));
    }

    fn one(&mut self, cpu: &mut Cpu) {
        self.fill(cpu);
        round::run(&self.values, &mut self.found, self.vectors);
        self.compare(cpu);
        self.number += 1;
        if self.number.is_multiple_of(SLOW) {
            self.privileged.check(cpu, self.number / SLOW);
            self.write_privileged(cpu);
        }
        cpu.tick();
    }

    fn fill(&mut self, cpu: &Cpu) {
        let base = word(&self.words, cpu, 0, self.number);
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
                    0 => values.general[0] | self.kept_flags,
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
}

/// A value that depends on vCPU, round and place.
fn word(words: &Words, cpu: &Cpu, place: u64, round: u64) -> u64 {
    words.first((cpu.index() as u64) << 12 | place << 16, round)
}
