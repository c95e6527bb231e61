//! A compact KVM VMM that can replace itself by `exec` under a running guest.

/// A place at which a test can make things fail (see `failpoints`); nothing without the feature.
macro_rules! fail_point {
    ($point:ident) => {
        #[cfg(feature = "failpoints")]
        crate::failpoints::at(crate::failpoints::Point::$point)?;
    };
}

/// Whether a bug is planted (see `failpoints`); never without the feature.
macro_rules! planted {
    ($bug:ident) => {{
        #[cfg(feature = "failpoints")]
        let planted = crate::failpoints::planted(crate::failpoints::Planted::$bug);
        #[cfg(not(feature = "failpoints"))]
        let planted = false;
        planted
    }};
}

/// Notes for a test what KVM tells of a VM here (see `audit`); nothing without the feature.
macro_rules! audit_point {
    ($machine:expr, $side:ident) => {
        #[cfg(feature = "failpoints")]
        crate::audit::note(&$machine, crate::audit::Side::$side);
    };
}

#[cfg(feature = "failpoints")]
pub mod audit;
pub mod boot;
pub mod config;
pub mod constraint;
mod descriptors;
pub mod devices;
pub mod end_signals;
mod exact_io;
#[cfg(feature = "failpoints")]
pub mod failpoints;
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
mod service_manager;
pub mod state;
pub mod sys;
pub mod unix_listener;
pub mod vcpu;
mod vmm;

use std::ffi::OsString;
use std::process::ExitCode;

/// The VMM as a program: parses `args` (without the program's name), boots or takes over, runs.
///
/// `cpr-vmm` calls it with its own arguments, `cpr-harness vmm …` with those after `vmm`.
///
/// Call it first thing: it takes over the descriptors that an update left open, so nobody else may
/// have opened any, and there must be one thread.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    reserve::grow_stack();
    vmm::main(args)
}
