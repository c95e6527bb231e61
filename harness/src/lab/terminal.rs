//! The terminal outside a lab.

use std::io::{self, IsTerminal};

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

/// Keeps the terminal raw: every key reaches the lab. Restores it when dropped.
pub struct Raw(Termios);

impl Raw {
    /// Makes the terminal of standard input raw.
    pub fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing is left to do about a failure.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}
