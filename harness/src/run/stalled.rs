//! A pipe that nobody reads, for what the VMM writes.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::{mkfifo, pipe2, write};

use crate::scenario::Stalled;

/// The least that a pipe can hold: less than an update logs.
const CAPACITY: i32 = 4096;

/// The pipe, which has a reader as long as this lives.
pub struct StalledPipe {
    /// What becomes the VMM's standard error.
    pub stderr: Option<OwnedFd>,
    /// The end that is not read.
    reader: OwnedFd,
}

impl StalledPipe {
    /// Makes it; `fifo` is the log file's path.
    pub fn make(kind: Stalled, fifo: &Path) -> io::Result<Self> {
        let (reader, writer) = match kind.is_stderr() {
            true => pipe2(OFlag::O_CLOEXEC)?,
            false => {
                match mkfifo(fifo, Mode::S_IRUSR | Mode::S_IWUSR) {
                    // A VMM was there before.
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

    /// The reader stays when the VMM is left up.
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
    // The VMM must find it as a shell makes it.
    fcntl(writer, FcntlArg::F_SETFL(OFlag::empty()))?;
    filled
}
