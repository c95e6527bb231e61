//! The signals that end the VMM.
//!
//! Handlers and a pipe, no signal mask: the mask would be inherited over exec by whatever
//! `cpr-exec-command` names.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// A descriptor that becomes readable when SIGTERM, SIGINT or SIGHUP has come.
#[derive(Debug)]
pub struct EndSignals {
    pipe: UnixStream,
}

impl EndSignals {
    /// Installs the handlers. A signal that was ignored when this process began (`nohup`) stays
    /// ignored.
    pub fn install() -> std::io::Result<Self> {
        let (pipe, writer) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            if !is_ignored(signal)? {
                signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
            }
        }
        Ok(Self { pipe })
    }

    /// True if one has come since the last call.
    pub fn take(&self) -> bool {
        (&self.pipe).read(&mut [0; 16]).is_ok_and(|bytes| bytes > 0)
    }
}

impl AsFd for EndSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

fn is_ignored(signal: i32) -> Result<bool, Errno> {
    // SAFETY: all-zero is a valid `sigaction`; a null new action only asks.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        Errno::result(libc::sigaction(signal, std::ptr::null(), &mut action))?;
        Ok(action.sa_sigaction == libc::SIG_IGN)
    }
}
