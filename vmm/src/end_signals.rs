//! The signals that ask a VMM to exit.

use nix::sys::signal::Signal;

/// SIGTERM, SIGINT and SIGHUP; code that blocks or handles one of them must treat all three alike.
pub const END_SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
