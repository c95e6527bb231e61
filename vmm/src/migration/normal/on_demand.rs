//! Reads a snapshot's RAM while the guest runs: what it touches first, and the rest behind it.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::snapshot::SnapshotRam;
use crate::logging;
use crate::memory::{PAGE, RamBlock, RamView, Userfault};
use crate::worker_thread;

/// What is read at once.
const PIECE: u64 = 64 << 10;
/// The exit status of a VMM whose guest cannot continue.
const FAILURE: i32 = 1;

/// RAM that is being read, by a thread. If the file cannot be read, the VMM ends: the guest cannot
/// continue without its RAM, and the snapshot is still there.
#[derive(Debug)]
pub struct Filling {
    thread: Option<JoinHandle<()>>,
    /// Readable at the end.
    ended: Arc<EventFd>,
}

impl Filling {
    /// Begins to read `from` into `ram`, none of which was used yet. Fails where the kernel, or the
    /// kind of memory, does not allow that: then RAM must be read before the guest runs.
    pub fn start(from: SnapshotRam, ram: &RamBlock) -> io::Result<Self> {
        let userfault = Userfault::open()?;
        let view = ram.view();
        for (start, len) in view.mappings() {
            // SAFETY: the thread below owns the view, which keeps the mappings, with the userfault.
            unsafe { userfault.watch(start, len) }?;
        }
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ended = Arc::new(EventFd::from_flags(flags)?);
        let pieces = from.pieces(PIECE)?;
        let mut filler = Filler { from, view, userfault, missing: pieces, buffer: Vec::new() };
        let end = ended.clone();
        let thread = worker_thread::spawn("ram-fill", move || {
            if let Err(error) = filler.fill() {
                let path = filler.from.path().display();
                logging::fatal(&format_args!(
                    "cannot read guest RAM from file:{path}: {error}: the guest cannot continue; \
                     load the file again"
                ));
                logging::finish();
                crate::sys::exit(FAILURE);
            }
            drop(filler);
            // Adding one to a counter at zero cannot fail.
            let _ = end.write(1);
        })?;
        Ok(Self { thread: Some(thread), ended })
    }

    /// Becomes readable when all of RAM has been read.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// Returns whether all of RAM has been read; then the thread is gone, too.
    pub fn is_over(&mut self) -> bool {
        let is_over = self.ended.read().is_ok();
        // It has nothing left to do but to end.
        if let Some(thread) = self.thread.take_if(|_| is_over) {
            let _ = thread.join();
        }
        is_over
    }
}

struct Filler {
    from: SnapshotRam,
    view: RamView,
    userfault: Userfault,
    /// Offsets of the pieces with data that were not read yet, in order; the others are zeros.
    missing: BTreeSet<u64>,
    buffer: Vec<u8>,
}

impl Filler {
    fn fill(&mut self) -> io::Result<()> {
        loop {
            while let Some(address) = self.userfault.fault()? {
                self.answer(address)?;
            }
            let Some(next) = self.missing.pop_first() else { break };
            self.read(next)?;
        }
        // What is still missing are zeros, as of any memory.
        for (start, len) in self.view.mappings() {
            self.userfault.forget(start, len)?;
        }
        Ok(())
    }

    /// Fills the piece in which an access waits.
    fn answer(&mut self, address: u64) -> io::Result<()> {
        let offset = self.view.offset_of(address).ok_or(Errno::EFAULT)?;
        let piece = offset / PIECE * PIECE;
        if self.missing.remove(&piece) {
            return self.read(piece);
        }
        // A hole, or a piece that was filled since: then there is nothing to do.
        let page = offset / PAGE * PAGE;
        match self.place(page).and_then(|at| self.userfault.fill_zeros(at, PAGE)) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
            filled => filled,
        }
    }

    fn read(&mut self, piece: u64) -> io::Result<()> {
        let length = PIECE.min(self.view.size() - piece);
        self.buffer.resize(length as usize, 0);
        self.from.read(piece, &mut self.buffer)?;
        // EEXIST: RAM was in use before, and would keep what it had.
        self.userfault.fill(self.place(piece)?, &self.buffer)
    }

    fn place(&self, offset: u64) -> io::Result<u64> {
        self.view.address_of(offset).ok_or_else(|| Errno::EFAULT.into())
    }
}
