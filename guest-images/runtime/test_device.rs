//! The test device (see mailbox.rs), which only our VMM has.

use super::arch::inl;
use super::damage::unavailable;
use super::mailbox::SEQUENCE_COUNTS;

/// Reports the test device as unavailable if it is missing. Call it in `prepare`.
pub fn need() {
    // An unused port reads as all ones.
    if inl(SEQUENCE_COUNTS[0]) == u32::MAX {
        unavailable(format_args!("the test device of cpr-vmm"));
    }
}
