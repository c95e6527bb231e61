//! What only CPL0 can access: MSRs, segment bases, debug registers and CPUID.

use crate::runtime::Cpu;
use crate::runtime::cpl0::{self, DEBUG_REGISTERS};
use crate::runtime::damage::verify;

/// Checks between two of CPUID.
const CPUID_EVERY: u64 = 32;

const FS_BASE: u32 = 0xc000_0100;
const GS_BASE: u32 = 0xc000_0101;

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
/// Those of them that have 32 bits only, unless the guest's processor is Intel's: KVM on AMD drops
/// the rest when it reads them (`svm_get_msr`), but a guest may see it until then.
const HALVED: [u32; 2] = [0x175, 0x176];
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
pub static ANCHORS: [[u64; 2]; 8] = {
    let mut anchors = [[0; 2]; 8];
    let mut cpu = 0;
    while cpu < 8 {
        anchors[cpu] = [0x1111 * (cpu as u64 + 1), 0x0101_0000 * (cpu as u64 + 1)];
        cpu += 1;
    }
    anchors
};

/// Number of leaves to check in each of the three ranges.
const CPUID_RANGE: usize = 0x20;
const CPUID_LEAVES: usize = 3 * CPUID_RANGE;

fn cpuid_leaf(place: usize) -> u32 {
    [0, 0x4000_0000, 0x8000_0000][place / CPUID_RANGE] + (place % CPUID_RANGE) as u32
}

/// The values that one vCPU holds.
pub struct Privileged {
    /// The current values; `None` if the host accepts no value.
    msrs: [Option<u64>; MSRS.len()],
    debug: [Option<u64>; DEBUG_REGISTERS.len()],
    /// A digest of each CPUID leaf.
    cpuid: [u64; CPUID_LEAVES],
    is_intel: bool,
}

impl Privileged {
    /// Reads CPUID; there are no other values before [`Self::write`].
    pub fn new() -> Self {
        Self {
            msrs: [None; MSRS.len()],
            debug: [None; DEBUG_REGISTERS.len()],
            cpuid: Self::cpuid_now(),
            is_intel: cpl0::cpuid(0, 0)[1].to_le_bytes() == *b"Genu",
        }
    }

    /// Writes new values; `word` returns the value of a place.
    pub fn write(&mut self, cpu: &Cpu, word: impl Fn(u64) -> u64) {
        let anchors = &ANCHORS[cpu.index()];
        for (msr, anchor) in [FS_BASE, GS_BASE].into_iter().zip(anchors) {
            let wrote = cpl0::wrmsr(msr, (&raw const *anchor).addr() as u64);
            assert!(wrote.is_ok(), "MSR {msr:#x} cannot be written");
        }
        if cpu.wants("msrs") {
            for (n, (msr, _, bits)) in MSRS.into_iter().enumerate() {
                let is_halved = HALVED.contains(&msr) && !self.is_intel;
                let bits = if is_halved { bits & 0xffff_ffff } else { bits };
                let value = word(1 + n as u64) & bits;
                let taken = cpl0::wrmsr(msr, value).is_ok() && cpl0::rdmsr(msr) == Ok(value);
                self.msrs[n] = taken.then_some(value);
            }
        }
        if cpu.wants("debug") {
            for (n, register) in DEBUG_REGISTERS.into_iter().enumerate() {
                let word = word(32 + n as u64);
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

    /// Checks the current values; CPUID only now and then. `checks`: how many there were before.
    pub fn check(&self, cpu: &Cpu, checks: u64) {
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
        let is_turn = checks.is_multiple_of(CPUID_EVERY) || cpu.wants_only("cpuid");
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
