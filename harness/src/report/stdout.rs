//! What the harness prints for the next program in a pipe.

use std::fmt;
use std::io::{Write, stdout};

/// Prints a line. One that nobody reads any more is lost, as in `list | head`: the exit status, and
/// the guests, do not depend on a reader.
pub fn say(line: impl fmt::Display) {
    let _ = writeln!(stdout().lock(), "{line}");
}
