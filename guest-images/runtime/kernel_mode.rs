//! The body at CPL0 (`ring=0`), as an operating system's kernel runs.
//!
//! The compiler keeps data below the stack pointer, where an interrupt at CPL0 would push its frame.
//! Therefore every handler gets a stack of its own, from the interrupt stack table.

use core::arch::asm;

use super::cpl0;
use super::options::Ring;
use super::shim;

/// The stack of most handlers, at which they start afresh: none may be interrupted by another.
const STACK: u8 = 1;
/// The stack of those that may interrupt another handler.
const NESTED_STACK: u8 = 2;
/// A trap and an NMI: nothing masks them.
const NESTED: [usize; 2] = [1, 2];

/// Whether this code runs at CPL0.
#[inline]
pub fn is_on() -> bool {
    let cs: u16;
    // SAFETY: reads a selector.
    unsafe { asm!("mov {0:x}, cs", out(reg) cs, options(nomem, nostack, preserves_flags)) };
    cs & 3 == 0
}

/// Continues at the privilege level that the command line selects. Every vCPU calls it, the boot
/// vCPU before it starts the others.
pub(super) fn enter(ring: Ring) {
    if ring == Ring::Kernel {
        shim::set_handler_stacks(
            |vector| if NESTED.contains(&vector) { NESTED_STACK } else { STACK },
        );
        cpl0::stay();
    }
}
