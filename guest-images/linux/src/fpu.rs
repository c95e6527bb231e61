//! Threads that share a vCPU keep different values in the FPU's registers while they are switched,
//! interrupted and stopped.

use std::arch::asm;

use crate::finding::Finding;

/// Vector registers that a test holds.
const REGISTERS: usize = 16;
/// Words of a register: 256 bits with AVX, of which SSE has the lower half.
const WORDS: usize = 4;
/// System calls, each of which lets another thread run, while the registers hold their values.
const YIELDS: u64 = 8;
/// MXCSR with all exceptions masked, and the four ways of rounding.
const MXCSR: u32 = 0x1f80;

/// Values of all vector registers.
type Registers = [[u64; WORDS]; REGISTERS];

/// The values of one thread.
pub struct Fpu {
    values: Registers,
    mxcsr: u32,
    has_avx: bool,
}

impl Fpu {
    /// Values that no thread with another `number` has.
    pub fn new(number: u64) -> Self {
        let mut values = Registers::default();
        for (register, words) in values.iter_mut().enumerate() {
            for (index, word) in words.iter_mut().enumerate() {
                *word = (number << 32 | (register as u64) << 8 | index as u64)
                    .wrapping_mul(crate::words::STEP);
            }
        }
        let mxcsr = MXCSR | (number as u32 % 4) << 13;
        Self { values, mxcsr, has_avx: is_x86_feature_detected!("avx") }
    }

    /// Holds the values over several switches of threads and checks them.
    pub fn round(&self) -> Result<(), Finding> {
        let mut found = Registers::default();
        let mxcsr = match self.has_avx {
            // SAFETY: the CPU has AVX.
            true => unsafe { hold_avx(&self.values, self.mxcsr, &mut found) },
            false => hold_sse(&self.values, self.mxcsr, &mut found),
        };
        self.judge(&found, mxcsr)
    }

    fn judge(&self, found: &Registers, mxcsr: u32) -> Result<(), Finding> {
        // The lower bits are flags of exceptions, which no instruction raises meanwhile.
        if mxcsr != self.mxcsr {
            return Err(Finding::value(self.mxcsr.into(), mxcsr.into(), "MXCSR of a thread"));
        }
        let words = if self.has_avx { WORDS } else { WORDS / 2 };
        for (register, (values, found)) in self.values.iter().zip(found).enumerate() {
            for index in 0..words {
                if values[index] != found[index] {
                    let name = format!("word {index} of vector register {register} of a thread");
                    return Err(Finding::value(values[index], found[index], name));
                }
            }
        }
        Ok(())
    }
}

/// The body of a function that loads all registers with `$load`, yields, and stores them with `$store`.
macro_rules! hold {
    ($values:expr, $mxcsr:expr, $found:expr, $load:literal, $store:literal, $r:literal) => {{
        let mut control = [$mxcsr, 0, 0];
        // SAFETY: the registers are moved within both arrays, all clobbered ones are listed, and MXCSR
        // is restored before Rust code runs again.
        unsafe {
            asm!(
                "stmxcsr [{control} + 4]",
                "ldmxcsr [{control}]",
                concat!($load, " ", $r, "0, [{values} + 0 * 32]"),
                concat!($load, " ", $r, "1, [{values} + 1 * 32]"),
                concat!($load, " ", $r, "2, [{values} + 2 * 32]"),
                concat!($load, " ", $r, "3, [{values} + 3 * 32]"),
                concat!($load, " ", $r, "4, [{values} + 4 * 32]"),
                concat!($load, " ", $r, "5, [{values} + 5 * 32]"),
                concat!($load, " ", $r, "6, [{values} + 6 * 32]"),
                concat!($load, " ", $r, "7, [{values} + 7 * 32]"),
                concat!($load, " ", $r, "8, [{values} + 8 * 32]"),
                concat!($load, " ", $r, "9, [{values} + 9 * 32]"),
                concat!($load, " ", $r, "10, [{values} + 10 * 32]"),
                concat!($load, " ", $r, "11, [{values} + 11 * 32]"),
                concat!($load, " ", $r, "12, [{values} + 12 * 32]"),
                concat!($load, " ", $r, "13, [{values} + 13 * 32]"),
                concat!($load, " ", $r, "14, [{values} + 14 * 32]"),
                concat!($load, " ", $r, "15, [{values} + 15 * 32]"),
                "2:",
                "mov eax, {yield}",
                "syscall",
                "dec {count}",
                "jnz 2b",
                concat!($store, " [{found} + 0 * 32], ", $r, "0"),
                concat!($store, " [{found} + 1 * 32], ", $r, "1"),
                concat!($store, " [{found} + 2 * 32], ", $r, "2"),
                concat!($store, " [{found} + 3 * 32], ", $r, "3"),
                concat!($store, " [{found} + 4 * 32], ", $r, "4"),
                concat!($store, " [{found} + 5 * 32], ", $r, "5"),
                concat!($store, " [{found} + 6 * 32], ", $r, "6"),
                concat!($store, " [{found} + 7 * 32], ", $r, "7"),
                concat!($store, " [{found} + 8 * 32], ", $r, "8"),
                concat!($store, " [{found} + 9 * 32], ", $r, "9"),
                concat!($store, " [{found} + 10 * 32], ", $r, "10"),
                concat!($store, " [{found} + 11 * 32], ", $r, "11"),
                concat!($store, " [{found} + 12 * 32], ", $r, "12"),
                concat!($store, " [{found} + 13 * 32], ", $r, "13"),
                concat!($store, " [{found} + 14 * 32], ", $r, "14"),
                concat!($store, " [{found} + 15 * 32], ", $r, "15"),
                "stmxcsr [{control} + 8]",
                "ldmxcsr [{control} + 4]",
                control = in(reg) &raw mut control,
                values = in(reg) $values.as_ptr(),
                found = in(reg) $found.as_mut_ptr(),
                count = inout(reg) YIELDS => _,
                yield = const libc::SYS_sched_yield,
                out("rax") _, out("rcx") _, out("r11") _,
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nostack),
            );
        }
        control[2]
    }};
}

/// Holds 256-bit values; returns MXCSR as found.
#[target_feature(enable = "avx")]
fn hold_avx(values: &Registers, mxcsr: u32, found: &mut Registers) -> u32 {
    hold!(values, mxcsr, found, "vmovdqu", "vmovdqu", "ymm")
}

/// Holds 128-bit values; returns MXCSR as found.
fn hold_sse(values: &Registers, mxcsr: u32, found: &mut Registers) -> u32 {
    hold!(values, mxcsr, found, "movdqu", "movdqu", "xmm")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_on_this_host() {
        for number in 0..4 {
            let fpu = Fpu::new(number);
            assert_eq!(fpu.round(), Ok(()));
            assert_eq!(Fpu { has_avx: false, ..fpu }.round(), Ok(()));
        }
    }

    #[test]
    fn one_lost_bit_is_noticed() {
        let fpu = Fpu { has_avx: true, ..Fpu::new(3) };
        let mut found = fpu.values;
        found[15][3] ^= 1;
        let text = fpu.judge(&found, fpu.mxcsr).unwrap_err().text;
        assert_eq!(text, "word 3 of vector register 15 of a thread");
        let rounding = fpu.judge(&fpu.values, MXCSR).unwrap_err();
        assert_eq!((rounding.report.expected, rounding.report.found), (0x7f80, 0x1f80));
    }

    #[test]
    fn threads_have_different_values() {
        assert_ne!(Fpu::new(1).values, Fpu::new(2).values);
    }
}
