//! What the harness prints for the next program in a pipe.

use std::fmt;
use std::io::{self, ErrorKind, Write, stdout};
use std::sync::{Mutex, PoisonError};

use anstream::adapter::strip_str;
use anstream::{AutoStream, ColorChoice};

/// The first line that could not be printed.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line. One that nobody reads any more is lost, as in `list | head`: the exit status, and
/// the guests, do not depend on a reader. What else goes wrong, such as a full disk, is to be
/// [told](failure) in the end.
pub fn say(line: impl fmt::Display) {
    write(format!("{}\n", as_shown(&line.to_string())).as_bytes());
}

/// Prints bytes, as [`say`] does.
pub fn write(bytes: &[u8]) {
    let mut stdout = stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        FAILED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }
}

/// Why not all of the output was written, if it was not.
pub fn failure() -> Option<io::Error> {
    FAILED.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// `line` without its colours, unless standard output is a terminal that wants them (`NO_COLOR`).
pub fn as_shown(line: &str) -> String {
    match AutoStream::choice(&stdout()) {
        ColorChoice::Never => strip_str(line).to_string(),
        _ => line.to_owned(),
    }
}
