//! The terminal outside a lab.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use terminal_size::{Height, Width, terminal_size_of};

use super::settings::Terminals;

/// Describes the streams of this process. `raw`: the terminal inside is to echo and to edit lines.
pub fn terminals(raw: bool) -> Terminals {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    Terminals {
        stdin: stdin.is_terminal(),
        stdout: stdout.is_terminal(),
        stderr: stderr.is_terminal(),
        cooked: raw,
        size: size(),
    }
}

/// Returns its rows and columns, if one of the streams is a terminal.
pub fn size() -> Option<(u16, u16)> {
    let size = terminal_size_of(io::stdin())
        .or_else(|| terminal_size_of(io::stdout()))
        .or_else(|| terminal_size_of(io::stderr()));
    size.map(|(Width(columns), Height(rows))| (rows, columns))
}

/// The settings of the terminal to restore at the end of this process, however it exits.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps the terminal raw: every key reaches the lab. Restores it when dropped, and at `exit`.
pub struct Raw(());

impl Raw {
    /// Makes the terminal of standard input raw.
    pub fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        // A second signal exits without unwinding.
        // SAFETY: the function is safe to call at any time, and never unwinds.
        unsafe { libc::atexit(restore) };
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

extern "C" fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // Nothing is left to do about a failure.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &before);
    }
}
