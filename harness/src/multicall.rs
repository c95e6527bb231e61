//! What this binary is, by its first argument: the harness, or what it carries.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::backend::mock;
use crate::bench::floor;
use crate::{carry, lab, restricted};

/// Runs the VMM, the mock VMM, a wrapper, a probe or the first process
/// of a lab if the arguments select one. Call it first in
/// `main`.
///
/// Returns None if this process is the harness.
pub fn dispatch() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let first = args.next()?;
    let rest: Vec<OsString> = args.collect();
    // Alone it may be a filter of tests, as in `cargo test vmm`.
    if rest.is_empty() {
        return None;
    }
    match first.to_str()? {
        carry::VMM => Some(cpr_vmm::main(rest)),
        carry::RESTRICTED => Some(restricted::main(&rest)),
        lab::init::NAME => Some(lab::init::main(&rest)),
        carry::MOCK_VMM => Some(mock::main(rest)),
        floor::PROBE => {
            let words = rest.into_iter().map(|word| word.to_string_lossy().into_owned());
            Some(floor::main(&words.collect::<Vec<_>>()))
        }
        _ => None,
    }
}
