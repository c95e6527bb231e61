//! A compact KVM VMM that can replace itself by `exec` under a running guest.

/// A point at which a test can inject a failure (see `failpoints`); nothing without the feature.
macro_rules! fail_point {
    ($point:ident) => {
        #[cfg(feature = "failpoints")]
        crate::failpoints::at(crate::failpoints::Point::$point)?;
    };
}

/// Passes a value through a seam, where a test can change it (see `failpoints::seam`); unchanged
/// without the feature.
#[cfg(feature = "failpoints")]
macro_rules! seam {
    ($seam:ident($($value:expr),*)) => {
        crate::failpoints::seam::$seam($($value),*)
    };
}
#[cfg(not(feature = "failpoints"))]
macro_rules! seam {
    ($seam:ident($($value:expr),*)) => {
        ($($value),*)
    };
}

/// Tells whether a bug is planted (see `failpoints`); always false without the feature. Only for
/// bugs for which no seam fits: a comment above says why, and `tests/seams.rs` counts them.
macro_rules! planted {
    ($bug:ident) => {{
        #[cfg(feature = "failpoints")]
        let planted = crate::failpoints::planted(crate::failpoints::Planted::$bug);
        #[cfg(not(feature = "failpoints"))]
        let planted = false;
        planted
    }};
}

/// Records KVM's view of a VM for a test (see `audit`); nothing without the feature.
macro_rules! audit_point {
    ($machine:expr, $side:ident) => {
        #[cfg(feature = "failpoints")]
        crate::audit::note(&$machine, crate::audit::Side::$side);
    };
}

mod address;
#[cfg(feature = "failpoints")]
pub mod audit;
pub mod boot;
pub mod config;
pub mod constraint;
mod counted_io;
mod descriptors;
pub mod devices;
pub mod end_signals;
#[cfg(feature = "failpoints")]
pub mod failpoints;
pub mod halt;
pub mod keeper;
mod logging;
pub mod machine;
mod memfd;
pub mod memory;
pub mod migration;
mod own_binary;
mod pid_file;
pub mod private_file;
pub mod qmp;
mod reserve;
mod same_file;
mod service_manager;
pub mod state;
pub mod switch;
pub mod sys;
pub mod unix_listener;
pub mod vcpu;
mod vmm;
mod worker_thread;

use std::ffi::OsString;
use std::process::ExitCode;

/// The version and, in parentheses, the git revision this is built from; "modified" if the sources
/// differ from it.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("CPR_REVISION"), ")");

/// Runs the VMM: parses `args` (without the program name), boots or takes over a guest, and serves
/// it to the end.
///
/// `cpr-vmm` calls it with its own arguments, `cpr-harness vmm …` with those after `vmm`.
///
/// Must be the first call of the program, with a single thread: it takes over the descriptors that
/// an update left open, so nothing else may have opened any.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    reserve::grow_stack();
    vmm::main(args)
}
