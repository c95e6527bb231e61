//! Standard output of the harness.

use std::fmt;
use std::io::{self, ErrorKind, Write, stdout};
use std::sync::{Mutex, PoisonError};

use anstream::adapter::strip_str;
use anstream::{AutoStream, ColorChoice};

/// The first error in writing to standard output.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints a line. A closed pipe, as in `list | head`, is ignored: it affects neither the exit
/// status nor the guests. Other errors, such as a full disk, are returned by [`failure`].
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

/// Returns the first error in writing the output, if any.
pub fn failure() -> Option<io::Error> {
    FAILED.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Returns `line` without colours, unless standard output is a terminal and `NO_COLOR` is unset.
pub fn as_shown(line: &str) -> String {
    match AutoStream::choice(&stdout()) {
        ColorChoice::Never => strip_str(line).to_string(),
        _ => line.to_owned(),
    }
}
