//! Environment variables by which the processes of an update find each other.

use std::ffi::OsStr;

/// The number of the memfd with the CPR state.
pub const STATE: &str = "CPR_EXEC_STATE";
/// The number of the socket on which to answer a rehearsal.
pub const REHEARSAL: &str = "CPR_REHEARSAL";
/// The environment variable that marks what a rehearsal has started.
pub const REHEARSAL_MARK: &str = "CPR_REHEARSAL_MARK";

/// Returns true for a variable that only a rehearsal uses.
pub fn is_of_rehearsal(name: &OsStr) -> bool {
    name == REHEARSAL || name == REHEARSAL_MARK
}
