//! Privileged operations, called from CPL3 through the shim's gate, and directly where the body runs
//! at CPL0.
//!
//! Each function is a few plain instructions that push nothing, so that after an exception in any
//! of them execution can continue at one common `ret`.

use core::arch::{asm, global_asm};

use super::kernel_mode;
use super::shim::{self, GATE_CALL};

global_asm!(
    "    .section .text.cpl0, \"ax\", @progbits",
    "    .code64",
    // Where a function continues after an exception.
    "cpl0_faulted:",
    "    ret",
    // At entry the return address is followed by the caller's RIP, CS and RFLAGS.
    "cpl0_interrupts_on:",
    "    orl $0x200, 24(%rsp)",
    "    ret",
    "cpl0_interrupts_off:",
    "    andl $~0x200, 24(%rsp)",
    "    ret",
    "cpl0_set_iopl_3:",
    "    orl $0x3000, 24(%rsp)",
    "    ret",
    // Continues the caller at CPL0, on its own stack.
    "cpl0_stay:",
    "    movq $0x10, 16(%rsp)",
    "    movq $0x18, 40(%rsp)",
    "    ret",
    "cpl0_halt:",
    "    sti",
    "    hlt",
    "    cli",
    "    ret",
    // The instruction in the shadow exits to the VMM.
    "cpl0_sti_shadow:",
    "    movl $0x80, %edx",
    "    sti",
    "    outb %al, %dx",
    "    cli",
    "    ret",
    "cpl0_mov_ss_shadow:",
    "    movl $0x80, %edx",
    "    xorl %ecx, %ecx",
    "    sti",
    "    movl %ecx, %ss",
    "    outb %al, %dx",
    "    cli",
    "    ret",
    "cpl0_cpuid:",
    "    movl %esi, %eax",
    "    movl %edx, %ecx",
    "    movq %rbx, %r9",
    "    cpuid",
    "    movl %eax, (%r8)",
    "    movl %ebx, 4(%r8)",
    "    movl %ecx, 8(%r8)",
    "    movl %edx, 12(%r8)",
    "    movq %r9, %rbx",
    "    ret",
    "cpl0_rdmsr:",
    "    movl %esi, %ecx",
    "    rdmsr",
    "    jmp cpl0_join",
    "cpl0_wrmsr:",
    "    movl %esi, %ecx",
    "    movl %edx, %eax",
    "    shrq $32, %rdx",
    "    wrmsr",
    "    ret",
    "cpl0_xgetbv:",
    "    movl %esi, %ecx",
    "    xgetbv",
    "cpl0_join:",
    "    shlq $32, %rdx",
    "    movl %eax, %eax",
    "    orq %rdx, %rax",
    "    ret",
    "cpl0_xsetbv:",
    "    movl %esi, %ecx",
    "    movl %edx, %eax",
    "    shrq $32, %rdx",
    "    xsetbv",
    "    ret",
    "cpl0_read_cr4:",
    "    movq %cr4, %rax",
    "    ret",
    "cpl0_write_cr4:",
    "    movq %rsi, %cr4",
    "    ret",
    ".irp n, 0, 1, 2, 3, 6, 7",
    "cpl0_read_dr\\n:",
    "    movq %dr\\n, %rax",
    "    ret",
    "cpl0_write_dr\\n:",
    "    movq %rsi, %dr\\n",
    "    ret",
    ".endr",
    options(att_syntax)
);

macro_rules! functions {
    ($($name:ident)*) => {
        unsafe extern "C" { $(static $name: u8;)* }
        $(
            #[allow(non_snake_case)]
            mod $name {
                pub fn address() -> usize {
                    (&raw const super::$name).addr()
                }
            }
        )*
    };
}

functions! {
    cpl0_faulted cpl0_interrupts_on cpl0_interrupts_off cpl0_set_iopl_3 cpl0_stay cpl0_halt cpl0_sti_shadow cpl0_mov_ss_shadow cpl0_cpuid cpl0_rdmsr cpl0_wrmsr
    cpl0_xgetbv cpl0_xsetbv cpl0_read_cr4 cpl0_write_cr4
    cpl0_read_dr0 cpl0_read_dr1 cpl0_read_dr2 cpl0_read_dr3 cpl0_read_dr6 cpl0_read_dr7
    cpl0_write_dr0 cpl0_write_dr1 cpl0_write_dr2 cpl0_write_dr3 cpl0_write_dr6 cpl0_write_dr7
}

/// The vector of an exception that an instruction raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault(pub u32);

/// Calls a function above with RSI, RDX and R8 set.
fn call(function: usize, rsi: u64, rdx: u64, r8: u64) -> u64 {
    let result;
    // SAFETY: the functions use only these registers, and write only to what R8 points to.
    unsafe {
        if kernel_mode::is_on() {
            asm!("call rdi", inlateout("rax") 0_u64 => result, in("rdi") function,
                 inlateout("rsi") rsi => _, inlateout("rdx") rdx => _, inlateout("r8") r8 => _,
                 lateout("rcx") _, lateout("r9") _);
        } else {
            asm!("ud2", inlateout("rax") u64::from(GATE_CALL) => result, in("rdi") function,
                 inlateout("rsi") rsi => _, inlateout("rdx") rdx => _, inlateout("r8") r8 => _,
                 lateout("rcx") _, lateout("r9") _);
        }
    }
    result
}

/// Like [`call`], for a function that may raise an exception.
fn try_call(function: usize, rsi: u64, rdx: u64) -> Result<u64, Fault> {
    shim::arm_fixup(cpl0_faulted::address());
    let result = call(function, rsi, rdx, 0);
    shim::disarm_fixup().map_or(Ok(result), |vector| Err(Fault(vector)))
}

/// Enables interrupts.
pub fn interrupts_on() {
    if kernel_mode::is_on() {
        // SAFETY: the handlers use a stack of their own and change no register.
        unsafe { asm!("sti") };
    } else {
        call(cpl0_interrupts_on::address(), 0, 0, 0);
    }
}

/// Disables interrupts.
pub fn interrupts_off() {
    if kernel_mode::is_on() {
        // SAFETY: as above.
        unsafe { asm!("cli") };
    } else {
        call(cpl0_interrupts_off::address(), 0, 0, 0);
    }
}

/// Opens all I/O ports to CPL3, whatever the TSS says.
pub(super) fn set_iopl_3() {
    call(cpl0_set_iopl_3::address(), 0, 0, 0);
}

/// Continues at CPL0.
pub(super) fn stay() {
    call(cpl0_stay::address(), 0, 0, 0);
}

/// Halts until an interrupt arrives. If interrupts were off before, none is missed: a pending one
/// arrives at once.
pub fn halt() {
    call(cpl0_halt::address(), 0, 0, 0);
}

/// Enables interrupts briefly, with an access to an unused port in the shadow of `sti`.
pub fn open_in_sti_shadow() {
    call(cpl0_sti_shadow::address(), 0, 0, 0);
}

/// Like [`open_in_sti_shadow`], in the shadow of `mov ss`.
pub fn open_in_mov_ss_shadow() {
    call(cpl0_mov_ss_shadow::address(), 0, 0, 0);
}

/// Reads EAX, EBX, ECX and EDX of a leaf as the VM has it (at CPL3 some hosts show their own).
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut registers = [0; 4];
    let at = (&raw mut registers).expose_provenance();
    call(cpl0_cpuid::address(), leaf.into(), subleaf.into(), at as u64);
    core::hint::black_box(registers)
}

/// Reads an MSR.
pub fn rdmsr(msr: u32) -> Result<u64, Fault> {
    try_call(cpl0_rdmsr::address(), msr.into(), 0)
}

/// Writes an MSR.
pub fn wrmsr(msr: u32, value: u64) -> Result<(), Fault> {
    try_call(cpl0_wrmsr::address(), msr.into(), value).map(drop)
}

/// Reads an extended control register.
pub fn xgetbv(register: u32) -> Result<u64, Fault> {
    try_call(cpl0_xgetbv::address(), register.into(), 0)
}

/// Writes an extended control register.
pub fn xsetbv(register: u32, value: u64) -> Result<(), Fault> {
    try_call(cpl0_xsetbv::address(), register.into(), value).map(drop)
}

/// Reads CR4.
pub fn cr4() -> u64 {
    call(cpl0_read_cr4::address(), 0, 0, 0)
}

/// Writes CR4.
pub fn set_cr4(value: u64) -> Result<(), Fault> {
    try_call(cpl0_write_cr4::address(), value, 0).map(drop)
}

/// The debug registers that a guest uses.
pub const DEBUG_REGISTERS: [u8; 6] = [0, 1, 2, 3, 6, 7];

/// Reads the debug register at this place in [`DEBUG_REGISTERS`].
pub fn debug_register(place: usize) -> Result<u64, Fault> {
    let functions = [
        cpl0_read_dr0::address(),
        cpl0_read_dr1::address(),
        cpl0_read_dr2::address(),
        cpl0_read_dr3::address(),
        cpl0_read_dr6::address(),
        cpl0_read_dr7::address(),
    ];
    try_call(functions[place], 0, 0)
}

/// Writes the debug register at this place in [`DEBUG_REGISTERS`].
pub fn set_debug_register(place: usize, value: u64) -> Result<(), Fault> {
    let functions = [
        cpl0_write_dr0::address(),
        cpl0_write_dr1::address(),
        cpl0_write_dr2::address(),
        cpl0_write_dr3::address(),
        cpl0_write_dr6::address(),
        cpl0_write_dr7::address(),
    ];
    try_call(functions[place], value, 0).map(drop)
}
