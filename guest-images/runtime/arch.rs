//! Single instructions.

use core::arch::asm;
use core::arch::x86_64::{_mm_lfence, _mm_pause, _rdtsc};

/// The time stamp counter, read after all that comes before it.
#[inline]
pub fn rdtsc() -> u64 {
    // SAFETY: neither instruction touches memory; both are in every 64-bit processor.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

/// Tells the processor that this is a waiting loop.
#[inline]
pub fn pause() {
    // SAFETY: a hint without any effect on state.
    #[allow(unused_unsafe)]
    unsafe {
        _mm_pause()
    }
}

/// Writes a byte to an I/O port below 4096.
pub fn outb(port: u16, value: u8) {
    // SAFETY: guests drive only devices that do not write to memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

/// Reads a byte from an I/O port below 4096.
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: guests drive only devices that do not write to memory.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags));
    }
    value
}

/// Writes 16 bits to an I/O port below 4096.
pub fn outw(port: u16, value: u16) {
    // SAFETY: guests drive only devices that do not write to memory.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nostack, preserves_flags)) }
}

/// Reads 32 bits from an I/O port below 4096.
pub fn inl(port: u16) -> u32 {
    let value;
    // SAFETY: guests drive only devices that do not write to memory.
    unsafe {
        asm!("in eax, dx", in("dx") port, out("eax") value, options(nostack, preserves_flags));
    }
    value
}

/// Writes 32 bits to an I/O port below 4096.
pub fn outl(port: u16, value: u32) {
    // SAFETY: guests drive only devices that do not write to memory.
    unsafe {
        asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags))
    }
}
