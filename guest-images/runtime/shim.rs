//! The CPL0 part of a guest, and the constants that it shares with the Rust part.

use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::mailbox::{Damage, MAILBOX_GPA, MAX_CPUS, Mailbox, damage_kind, damage_state, phase};

/// The address of the running vCPU's LAPIC.
pub const LAPIC: u64 = 0xfee0_0000;
/// The number of GiB above the first four that can be mapped.
pub const HIGH_GIB: usize = 60;
/// The size of each vCPU's stack at CPL3, in bytes; a power of two.
const USER_STACK: usize = 1 << USER_STACK_SHIFT;
const USER_STACK_SHIFT: u32 = 15;
/// The binary logarithm of the size of each vCPU's stack for exceptions, in bytes.
const KERNEL_STACK_SHIFT: u32 = 11;

/// EAX at a `ud2` that makes the shim stop the vCPU permanently.
const GATE_STOP: u32 = 0x5354_4f50;
/// EAX at a `ud2` that makes the shim call a function of cpl0.rs.
pub(super) const GATE_CALL: u32 = 0x4341_4c4c;
/// See [`super::interrupts::Eoi`].
pub(super) const MODE_EOI: u8 = 1;

/// EBX at the PVH entry point of a guest that has booted as a firmware image, without an
/// hvm_start_info; the address of one is never odd.
pub(super) const FROM_FIRMWARE: u32 = 1;

global_asm!(
    include_str!("shim.s"),
    tables = const 0x10_0000,
    shim = const 0x10_a000,
    lapic = const LAPIC,
    max_cpus = const MAX_CPUS,
    tss_stride = const 1024,
    high_gib = const HIGH_GIB,
    kernel_stack = const 1 << KERNEL_STACK_SHIFT,
    kernel_stack_shift = const KERNEL_STACK_SHIFT,
    user_stack = const USER_STACK,
    user_stack_shift = const USER_STACK_SHIFT,
    gate_stop = const GATE_STOP,
    gate_call = const GATE_CALL,
    mode_eoi = const MODE_EOI,
    from_firmware = const FROM_FIRMWARE,
    phase = const MAILBOX_GPA as usize + offset_of!(Mailbox, phase),
    damaged = const phase::DAMAGED,
    damage = const MAILBOX_GPA as usize + offset_of!(Mailbox, damage),
    state = const offset_of!(Damage, state),
    writing = const damage_state::WRITING,
    valid = const damage_state::VALID,
    kind = const offset_of!(Damage, kind),
    kind_exception = const damage_kind::EXCEPTION,
    cpu = const offset_of!(Damage, cpu),
    vector = const offset_of!(Damage, vector),
    error_code = const offset_of!(Damage, error_code),
    rip = const offset_of!(Damage, rip),
    address = const offset_of!(Damage, address),
    detail = const offset_of!(Damage, detail),
    options(att_syntax)
);

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
    static user_stacks: u8;
    static mut idt: u8;
    static idt_end: u8;
    static fixups: [AtomicU64; MAX_CPUS];
    static faults: [AtomicU64; MAX_CPUS];
}

/// Stops this vCPU permanently, in `hlt` with interrupts off, which costs the host nothing.
pub fn stop() -> ! {
    // SAFETY: the gate does not return, so nothing after it can be affected.
    unsafe { asm!("ud2", in("eax") GATE_STOP, options(noreturn)) }
}

/// Prepares this vCPU for one exception, after which it continues at `address` on the same stack.
pub fn arm_fixup(address: usize) {
    let cpu = cpu_index();
    // SAFETY: tables of the shim, accessed through atomics and by its handlers.
    unsafe {
        faults[cpu].store(0, SeqCst);
        fixups[cpu].store(address as u64, SeqCst);
    }
}

/// The location of the address that [`arm_fixup`] sets, for code that sets it itself.
pub fn fixup_slot() -> *mut u64 {
    // SAFETY: a table of the shim; the pointer stays in it.
    unsafe { fixups[cpu_index()].as_ptr() }
}

/// Disarms the fixup and returns the vector of the exception, if there was one.
pub fn disarm_fixup() -> Option<u32> {
    let cpu = cpu_index();
    // SAFETY: as above.
    unsafe {
        fixups[cpu].store(0, SeqCst);
        faults[cpu].load(SeqCst).checked_sub(1).map(|vector| vector as u32)
    }
}

/// Removes the exception handlers of all vCPUs: the next exception is a triple fault.
pub fn drop_exception_handlers() {
    let start = &raw mut idt;
    let bytes = (&raw const idt_end).addr() - start.addr();
    // SAFETY: both symbols delimit the table, which only processors read.
    unsafe { start.write_bytes(0, bytes) };
}

/// Selects a stack of the interrupt stack table for the handler of each vector.
pub(super) fn set_handler_stacks(stack: impl Fn(usize) -> u8) {
    /// Bytes per gate, and where in one the stack is.
    const GATE: usize = 16;
    const STACK: usize = 4;
    for vector in 0..256 {
        // SAFETY: a byte of the table, which only processors read.
        unsafe { (&raw mut idt).add(vector * GATE + STACK).write_volatile(stack(vector)) };
    }
}

/// The code that a vCPU executes first, in real mode.
pub fn trampoline_code() -> &'static [u8] {
    let start = &raw const trampoline;
    let end = &raw const trampoline_end;
    // SAFETY: both symbols delimit one piece of code in the image, which nothing writes.
    unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

/// The index of the running vCPU, derived from the body's stack: at CPL3 `cpuid` shows the host's.
pub fn cpu_index() -> usize {
    let here = 0u8;
    ((&raw const here).addr() - (&raw const user_stacks).addr()) >> USER_STACK_SHIFT
}
