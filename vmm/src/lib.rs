//! A compact KVM VMM that can replace itself by `exec` under a running guest.

pub mod boot;
pub mod config;
pub mod devices;
pub mod memory;
pub mod machine;
pub mod state;
mod unix_listener;
pub mod vcpu;

use std::ffi::OsString;
use std::process::ExitCode;

/// The VMM as a program: parses `args` (without the program's name), boots or takes over, runs.
///
/// `cpr-vmm` calls it with its own arguments, `cpr-harness vmm …` with those after `vmm`.
pub fn main(_args: impl IntoIterator<Item = OsString>) -> ExitCode {
    ExitCode::FAILURE
}
