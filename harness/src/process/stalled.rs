//! A pipe without a reading process, for the VMM's log or standard error.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::{mkfifo, pipe2, write};

use crate::scenario::Stalled;

/// The smallest capacity of a pipe in bytes: less than an update logs.
const CAPACITY: i32 = 4096;

/// The pipe, whose read end is open but unread as long as this exists.
pub struct StalledPipe {
    /// The write end, for the VMM's standard error.
    pub stderr: Option<OwnedFd>,
    /// The read end, which is never read.
    reader: OwnedFd,
}

impl StalledPipe {
    /// Creates the pipe; `fifo` is the path of the log file.
    pub fn make(kind: Stalled, fifo: &Path) -> io::Result<Self> {
        let (reader, writer) = match kind.is_stderr() {
            true => pipe2(OFlag::O_CLOEXEC)?,
            false => {
                match mkfifo(fifo, Mode::S_IRUSR | Mode::S_IWUSR) {
                    // An earlier VMM of the case had it.
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                let open = || OpenOptions::new().read(true).write(true).open(fifo);
                (open()?.into(), open()?.into())
            }
        };
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(CAPACITY))?;
        if kind.is_full() {
            fill(&writer)?;
        }
        Ok(Self { stderr: kind.is_stderr().then_some(writer), reader })
    }

    /// Keeps the read end open, for a VMM that is left running.
    pub fn keep(self) {
        std::mem::forget(self.reader);
    }
}

fn fill(writer: &impl AsFd) -> io::Result<()> {
    fcntl(writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let filled = loop {
        match write(writer, &[b'.'; CAPACITY as usize]) {
            Ok(_) => {}
            Err(Errno::EAGAIN) => break Ok(()),
            Err(errno) => break Err(errno.into()),
        }
    };
    // The VMM must get a blocking pipe, as a shell creates it.
    fcntl(writer, FcntlArg::F_SETFL(OFlag::empty()))?;
    filled
}
