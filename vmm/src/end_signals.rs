//! The signals that ask a VMM to end.

use nix::sys::signal::Signal;

/// Whoever holds them back, handles them, or leaves them to others means all of these.
pub const END_SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
