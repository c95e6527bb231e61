//! The VMM inside the harness: a binary that runs scenarios starts its VMMs from itself.
//!
//! Thus a stale VMM is never tested, and neither `cargo run` nor `cargo test` needs a second build.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::bench::floor;

/// First argument that makes the binary the VMM.
pub const VMM: &str = "vmm";
/// First argument that makes the binary the mock VMM.
pub const MOCK_VMM: &str = "mock-vmm";
/// First argument that makes the binary a wrapper of a VMM.
pub const LOWERED: &str = "lowered";

/// Runs the VMM, the mock VMM, a wrapper or a probe if the arguments select one. Call it first in
/// `main`.
///
/// Returns None if this process is the harness.
pub fn dispatch() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let first = args.next()?;
    let rest: Vec<OsString> = args.collect();
    // A single argument may be a test filter, as in `cargo test vmm`.
    if rest.is_empty() {
        return None;
    }
    match first.to_str()? {
        VMM => Some(cpr_vmm::main(rest)),
        LOWERED => Some(crate::lowered::main(&rest)),
        MOCK_VMM => Some(crate::backend::mock::main(rest)),
        floor::PROBE => {
            let words = rest.into_iter().map(|word| word.to_string_lossy().into_owned());
            Some(floor::main(&words.collect::<Vec<_>>()))
        }
        _ => None,
    }
}

/// The path of the running binary, with symbolic links resolved, because an update needs a path
/// that stays valid.
pub fn own_binary() -> std::io::Result<PathBuf> {
    std::fs::read_link("/proc/self/exe")
}
