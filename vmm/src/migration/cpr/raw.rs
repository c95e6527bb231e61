//! System calls without libc: a child that shares this address space would write to the `errno` of
//! the thread that started it.

use std::arch::asm;

use nix::errno::Errno;

/// Makes a system call; the arguments are passed as they are.
///
/// # Safety
/// As for the call that `number` stands for: pointers among the arguments must be valid for it.
pub unsafe fn call(number: i64, arguments: [usize; 5]) -> Result<usize, Errno> {
    let [a, b, c, d, e] = arguments;
    let result: isize;
    // SAFETY: the registers and clobbers are those of the x86-64 system call ABI; what the call does
    // to memory is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    match result {
        -4095..0 => Err(Errno::from_raw(-result as i32)),
        _ => Ok(result as usize),
    }
}
