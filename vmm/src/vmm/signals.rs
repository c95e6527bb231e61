//! Handles the signals that end the VMM.
//!
//! Uses handlers and a pipe, not a signal mask: the program named by `cpr-exec-command` would
//! inherit the mask. (For the moment of exec, see `migration::cpr::held_signals`.)

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};

use crate::end_signals::END_SIGNALS;

/// A descriptor that becomes readable on SIGTERM, SIGINT or SIGHUP.
///
/// Both ends stay open across exec, so that a signal to one image of this process reaches the next.
#[derive(Debug)]
pub struct EndSignals {
    reader: UnixStream,
    writer: UnixStream,
}

impl EndSignals {
    /// Installs the handlers, on the socket pair of the `previous` process image if there is one. A
    /// signal that was ignored when this process started (`nohup`) stays ignored.
    pub fn install(previous: Option<[OwnedFd; 2]>) -> std::io::Result<Self> {
        let (reader, writer) = match previous {
            Some(ends) => ends.map(UnixStream::from).into(),
            None => {
                // The parent process may have blocked them. An update blocks them itself.
                SigSet::from_iter(END_SIGNALS).thread_unblock()?;
                UnixStream::pair()?
            }
        };
        reader.set_nonblocking(true)?;
        for signal in END_SIGNALS.map(|signal| signal as i32) {
            if !is_ignored(signal)? {
                signal_hook::low_level::pipe::register(signal, writer.try_clone()?)?;
            }
        }
        Ok(Self { reader, writer })
    }

    /// Returns the reading and the writing end.
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.reader.as_fd(), self.writer.as_fd()]
    }

    /// Returns whether a signal has come since the last call.
    pub fn take(&self) -> bool {
        (&self.reader).read(&mut [0; 16]).is_ok_and(|bytes| bytes > 0)
    }
}

impl AsFd for EndSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

/// Signals that the VMM itself relies on: those of a crash, and that of a deadline.
const OWN: [Signal; 6] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGABRT,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGALRM,
];

/// Undoes inherited settings that break the VMM: blocked signals, and an ignored SIGCHLD, with
/// which the kernel reaps children by itself and the exit status of a rehearsal is lost. Must be
/// called first. All other settings stay, for the program that an update executes.
pub fn reset_inherited_signals() {
    // SAFETY: the default action; none of our code runs when the signal comes.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // It fails only on a bad `how`.
    let _ = SigSet::from_iter(OWN).thread_unblock();
}

/// Makes a write beyond RLIMIT_FSIZE fail with EFBIG instead of killing the process.
///
/// Must be called first, so that it applies before and after an update alike.
pub fn survive_file_size_limit() {
    // SAFETY: no handler is installed, so none of our code runs when the signal comes. The call
    // fails for signals that do not exist.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

fn is_ignored(signal: i32) -> Result<bool, Errno> {
    // SAFETY: all-zero is a valid `sigaction`; a null new action only queries.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        Errno::result(libc::sigaction(signal, std::ptr::null(), &mut action))?;
        Ok(action.sa_sigaction == libc::SIG_IGN)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn exceeding_the_file_size_limit_is_an_error() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        survive_file_size_limit();
        // More than any other test of this process writes.
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
    fn signal_is_not_lost_across_images() {
        let signals = EndSignals::install(None).unwrap();
        assert!(!signals.take());
        signal_hook::low_level::raise(signal_hook::consts::SIGTERM).unwrap();
        let ends = || signals.ends().map(|end| end.try_clone_to_owned().unwrap());
        let next = EndSignals::install(Some(ends())).unwrap();
        assert!(next.take() && !next.take());
    }
}
