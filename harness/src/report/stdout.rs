//! Standard output of the harness.

use std::fmt;
use std::io::{self, ErrorKind, Write, stdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anstream::adapter::strip_str;
use anstream::{AutoStream, ColorChoice};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;

/// The first error in writing to standard output.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Whether standard output has lost its reader.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Prints a line. A closed pipe, as in `list | head`, is not an error, but ends a command that runs VMs,
/// as SIGPIPE does (`signals::guard`). Other errors, such as a full disk, are returned by [`failure`].
pub fn say(line: impl fmt::Display) {
    write(format!("{}\n", as_shown(&line.to_string())).as_bytes());
}

/// Prints bytes, as [`say`] does.
pub fn write(bytes: &[u8]) {
    let mut stdout = stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    match written {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => {
            // Once: a second signal would not let the first one finish. Ignored without a guard.
            if !CLOSED.swap(true, Ordering::Relaxed) {
                let _ = kill(getpid(), Signal::SIGPIPE);
            }
        }
        Err(e) => {
            FAILED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        }
        Ok(()) => {}
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
