//! What the harness prints for the next program in a pipe.

use std::fmt;
use std::io::{Write, stdout};

use anstream::adapter::strip_str;
use anstream::{AutoStream, ColorChoice};

/// Prints a line. One that nobody reads any more is lost, as in `list | head`: the exit status, and
/// the guests, do not depend on a reader.
pub fn say(line: impl fmt::Display) {
    let _ = writeln!(stdout().lock(), "{}", as_shown(&line.to_string()));
}

/// `line` without its colours, unless standard output is a terminal that wants them (`NO_COLOR`).
pub fn as_shown(line: &str) -> String {
    match AutoStream::choice(&stdout()) {
        ColorChoice::Never => strip_str(line).to_string(),
        _ => line.to_owned(),
    }
}
