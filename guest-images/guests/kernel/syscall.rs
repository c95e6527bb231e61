//! `sysret` to CPL3 and `syscall` back.

use core::arch::global_asm;

use crate::runtime::cpl0;
use crate::runtime::damage::verify;

const EFER: u32 = 0xc000_0080;
const STAR: u32 = 0xc000_0081;
const LSTAR: u32 = 0xc000_0082;
const FMASK: u32 = 0xc000_0084;
const EFER_SCE: u64 = 1;

/// Selectors: `syscall` loads CS from the first and SS from the next, `sysret` SS from the one after
/// the second and CS from that after it. See the GDT in shim.s.
const SELECTORS: u64 = 0x1b << 48 | 0x10 << 32;
const KERNEL: [u64; 2] = [0x10, 0x18];
const USER: [u64; 2] = [0x2b, 0x23];
/// CF, PF, AF, ZF, SF, DF, OF: flags that CPL3 gets and must give back.
const FREE_FLAGS: u64 = 0xcd5;
/// The flags that `syscall` clears: those, because QEMU's TCG forgets some of them anyway, and IF.
const FMASK_VALUE: u64 = FREE_FLAGS | 1 << 9;
const ALWAYS: u64 = 1 << 1;

/// What both sides have seen.
#[repr(C)]
#[derive(Default)]
struct Seen {
    /// CS and SS at CPL3.
    user: [u64; 2],
    /// CS and SS at the entry point.
    kernel: [u64; 2],
    /// RCX, R11 and RFLAGS there.
    rcx: u64,
    r11: u64,
    flags: u64,
    /// The RSP that CPL3 had.
    rsp: u64,
}

global_asm!(
    "    .text",
    // (flags, spins, what was seen)
    "syscall_round:",
    "    pushq %rbx",
    "    pushq %rbp",
    "    pushq %r12",
    "    movq %rdx, %r12",
    "    movq %rsp, %rbx",
    "    leaq 1f(%rip), %rcx",
    "    movq %rdi, %r11",
    "    sysretq",
    // At CPL3, on the same stack.
    "1:  movl %cs, %eax",
    "    movq %rax, (%r12)",
    "    movl %ss, %eax",
    "    movq %rax, 8(%r12)",
    "    movq %rsi, %rcx",
    "2:  loop 2b",
    "    syscall",
    "syscall_next:",
    "    ud2",
    "syscall_entry:",
    "    pushfq",
    "    popq %rdx",
    "    movq %rsp, 56(%r12)",
    "    movq %rbx, %rsp",
    "    movl %cs, %eax",
    "    movq %rax, 16(%r12)",
    "    movl %ss, %eax",
    "    movq %rax, 24(%r12)",
    "    movq %rcx, 32(%r12)",
    "    movq %r11, 40(%r12)",
    "    movq %rdx, 48(%r12)",
    "    popq %r12",
    "    popq %rbp",
    "    popq %rbx",
    "    ret",
    options(att_syntax)
);

unsafe extern "sysv64" {
    static syscall_entry: u8;
    static syscall_next: u8;
    fn syscall_round(flags: u64, spins: u64, seen: *mut Seen);
}

/// Enables `syscall` on this vCPU.
pub fn prepare() {
    let efer = cpl0::rdmsr(EFER).unwrap_or(0) | EFER_SCE;
    let entry = (&raw const syscall_entry).addr() as u64;
    for (msr, value) in [(EFER, efer), (STAR, SELECTORS), (LSTAR, entry), (FMASK, FMASK_VALUE)] {
        assert!(cpl0::wrmsr(msr, value).is_ok(), "MSR {msr:#x} cannot be written");
    }
}

/// Goes to CPL3 with some flags that depend on `word`, spins there, and comes back.
pub fn round(word: u64, spins: u64) {
    let flags = word & FREE_FLAGS | ALWAYS;
    let mut seen = Seen::default();
    // SAFETY: the other side uses no registers that a function must preserve, and stores to `seen`.
    unsafe { syscall_round(flags, spins, &raw mut seen) };
    let next = (&raw const syscall_next).addr() as u64;
    for (expected, found, name) in [
        (USER[0], seen.user[0], "CS after sysret"),
        (USER[1], seen.user[1], "SS after sysret"),
        (KERNEL[0], seen.kernel[0], "CS after syscall"),
        (KERNEL[1], seen.kernel[1], "SS after syscall"),
        (next, seen.rcx, "RCX after syscall"),
        (flags, seen.r11, "R11 after syscall"),
        (ALWAYS, seen.flags, "RFLAGS after syscall"),
    ] {
        verify(expected, found, format_args!("{name}"));
    }
}
