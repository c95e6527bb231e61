//! The device that guests and our VMM's tests share (see mailbox.rs); other VMMs have none.

use super::arch::inl;
use super::damage::unavailable;
use super::mailbox::SEQUENCE_COUNTS;

/// Says that it is not there, if it is not. For `prepare`.
pub fn need() {
    // A port that nobody answers reads as all ones.
    if inl(SEQUENCE_COUNTS[0]) == u32::MAX {
        unavailable(format_args!("the test device of cpr-vmm"));
    }
}
