//! The signals that ask a VMM to exit.

use nix::sys::signal::{SigSet, Signal};

/// SIGTERM, SIGINT and SIGHUP; code that blocks or handles one of them must treat all three alike.
pub const END_SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Blocks the end signals on this thread. An exec ends it anywhere: in the handler of an end signal,
/// the signal would be lost.
pub fn leave_to_others() {
    // It fails only on an invalid `how`.
    let _ = SigSet::from_iter(END_SIGNALS).thread_block();
}
