//! The signals that end the VMM.
//!
//! Handlers and a pipe, no signal mask: the mask would be inherited over exec by whatever
//! `cpr-exec-command` names.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// A descriptor that becomes readable when SIGTERM, SIGINT or SIGHUP has come.
#[derive(Debug)]
pub struct EndSignals {
    pipe: UnixStream,
    /// That of the previous process image, for as long as one may return to it.
    previous: Option<OwnedFd>,
}

impl EndSignals {
    /// Installs the handlers. A signal that was ignored when this process began (`nohup`) stays
    /// ignored. One that came to the `previous` process image, too late for it, has come.
    pub fn install(previous: Option<OwnedFd>) -> std::io::Result<Self> {
        let (pipe, mut writer) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            if !is_ignored(signal)? {
                signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
            }
        }
        // Left where it is: an update that fails later leaves it to that image.
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let seen = |fd: &OwnedFd| recv(fd.as_raw_fd(), &mut [0], flags).is_ok_and(|n| n > 0);
        if previous.as_ref().is_some_and(seen) {
            writer.write_all(b"X")?;
        }
        Ok(Self { pipe, previous })
    }

    /// Nothing returns to the previous process image any more.
    pub fn forget_previous(&mut self) {
        self.previous.take();
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

/// A file that would be longer than RLIMIT_FSIZE allows is an error (EFBIG) and not the end.
///
/// To be called first thing, so that it holds before and after an update alike.
pub fn survive_file_size_limit() {
    // SAFETY: no handler is installed, so none of our code runs when the signal comes. The call
    // fails for signals that do not exist.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

fn is_ignored(signal: i32) -> Result<bool, Errno> {
    // SAFETY: all-zero is a valid `sigaction`; a null new action only asks.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        Errno::result(libc::sigaction(signal, std::ptr::null(), &mut action))?;
        Ok(action.sa_sigaction == libc::SIG_IGN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_too_long_is_an_error() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        survive_file_size_limit();
        // More than any other test of this process writes meanwhile.
        const LIMIT: u64 = 1 << 40;
        let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        setrlimit(Resource::RLIMIT_FSIZE, LIMIT, hard).unwrap();
        let error = file.set_len(LIMIT + 1).unwrap_err();
        setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
        file.write_all(b"X").unwrap();
    }

    #[test]
    fn a_signal_is_not_lost_between_two_images() {
        let signals = EndSignals::install(None).unwrap();
        assert!(!signals.take());
        signal_hook::low_level::raise(SIGHUP).unwrap();
        let read_end = || signals.as_fd().try_clone_to_owned().unwrap();
        let mut next = EndSignals::install(Some(read_end())).unwrap();
        next.forget_previous();
        assert!(next.take() && !next.take());
        // It was looked at only: the first image still knows.
        assert!(signals.take());
        assert!(!EndSignals::install(Some(read_end())).unwrap().take());
    }
}
