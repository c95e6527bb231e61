//! One round at CPL3: loads every register, spins, and stores what it finds.

use core::arch::global_asm;
use core::mem::offset_of;

/// The registers that a round loads and stores; the assembly below depends on the layout.
#[repr(C, align(64))]
pub struct State {
    pub zmm: [[u64; 8]; 32],
    pub k: [u64; 8],
    /// In the format of `fnsave`.
    pub x87: [u8; 108],
    pub mxcsr: u32,
    /// RFLAGS, then RAX, RCX, RDX, RBX, RBP, RSI, RDI, R8 to R15; from the top of `stack` down.
    pub general: [u64; 16],
    /// DS, ES, FS, GS.
    pub selectors: [u16; 4],
    /// The stack pointer of the Rust code while the round runs.
    rsp: u64,
    /// The stack during a round: the registers are pushed below `top`.
    pub stack: [u64; 32],
    top: [u64; 0],
}

/// Names of the registers in `State::general`.
pub const GENERAL: [&str; 16] = [
    "RFLAGS", "RAX", "RCX", "RDX", "RBX", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12",
    "R13", "R14", "R15",
];

/// The available size of the vector registers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
#[repr(u32)]
pub enum Vectors {
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

/// Loads `values`, spins as often as RCX says, and stores the registers in `found`.
pub fn run(values: &State, found: &mut State, vectors: Vectors) {
    // SAFETY: both are complete states, and the stack in `found` has room for all registers.
    unsafe { registers_round(values, found, vectors as u32) };
}

/// All registers zero.
pub const EMPTY: State = State {
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
