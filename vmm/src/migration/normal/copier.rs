//! The thread that copies RAM while the guest runs, or is stopped for the rest of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{Shutdown, shutdown};

use super::holes::Holes;
use super::progress::Counts;
use super::ram_stream::MAX_DATA;
use super::sink::{Sink, SinkError};
use crate::memory::{PAGE, PageSet, RamBlock, RamView, runs};
use crate::worker_thread;

/// How long the thread may take to notice that it is no longer needed; a write to a file may take
/// longer, and then it ends by itself.
const END: Duration = Duration::from_millis(200);
/// How often the other process learns that this one waits for its bandwidth.
const IDLE: Duration = Duration::from_secs(5);

/// Errors from copying RAM.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// Nothing more can be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// RAM cannot be read.
    #[error("cannot read guest RAM: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// The thread has ended.
    #[error("the thread that copies guest RAM has ended; this is a bug in the VMM")]
    Gone,
    /// The rest of RAM took too long.
    #[error("the rest of guest RAM was not copied in time; raise x-cpr-exec-deadline")]
    Late,
}

enum Job {
    Copy(PageSet),
    End,
}

/// What both threads see.
#[derive(Debug, Default)]
struct Shared {
    counts: Counts,
    /// Bytes per second; 0: any.
    bandwidth: AtomicU64,
    cancelled: AtomicBool,
}

/// The thread that copies RAM.
#[derive(Debug)]
pub struct Copier {
    jobs: Option<Sender<Job>>,
    results: Receiver<Result<(), CopyError>>,
    wake: Arc<EventFd>,
    shared: Arc<Shared>,
    /// A socket that it may wait for.
    socket: Option<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Copier {
    /// Starts the thread.
    pub fn start(ram: &RamBlock, sink: Sink, bandwidth: u64) -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        // Readable from the start: there is something to copy.
        let wake = Arc::new(EventFd::from_value_and_flags(1, flags)?);
        let socket = sink.socket_fd().map(|fd| fd.try_clone_to_owned()).transpose()?;
        let shared = Arc::new(Shared { bandwidth: bandwidth.into(), ..Shared::default() });
        let (jobs, todo) = channel();
        let (done, results) = channel();
        let mut worker = Worker {
            ram: ram.view(),
            file: ram.reopen(),
            sink,
            shared: shared.clone(),
            buffer: Vec::new(),
        };
        let awaken = wake.clone();
        let thread = worker_thread::spawn("ram-copy", move || {
            while let Ok(job) = todo.recv() {
                if done.send(worker.carry_out(job)).is_err() {
                    break;
                }
                // The counter cannot be full: each result is taken.
                let _ = awaken.write(1);
            }
        })?;
        Ok(Self { jobs: Some(jobs), results, wake, shared, socket, thread: Some(thread) })
    }

    /// Returns what has been copied.
    pub fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// Sets how many bytes to write in a second; 0: as many as possible.
    pub fn set_bandwidth(&self, bandwidth: u64) {
        self.shared.bandwidth.store(bandwidth, Ordering::Relaxed);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// Copies these pages.
    pub fn copy(&self, pages: PageSet) -> Result<(), CopyError> {
        self.give(Job::Copy(pages))
    }

    /// Ends the copy: over a socket, the end of RAM; a file's data is on its disk afterwards.
    pub fn end(&self) -> Result<(), CopyError> {
        self.give(Job::End)
    }

    fn give(&self, job: Job) -> Result<(), CopyError> {
        let jobs = self.jobs.as_ref().ok_or(CopyError::Gone)?;
        jobs.send(job).map_err(|_| CopyError::Gone)
    }

    /// Becomes readable when [`Copier::finished`] has something.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Returns the result of what it was asked for, once that is done.
    pub fn finished(&self) -> Option<Result<(), CopyError>> {
        // EAGAIN: the queue is what counts.
        let _ = self.wake.read();
        match self.results.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(CopyError::Gone)),
        }
    }

    /// Waits until it has done what it was asked for.
    pub fn wait(&self, until: Instant) -> Result<(), CopyError> {
        match self.results.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(CopyError::Late),
            Err(RecvTimeoutError::Disconnected) => Err(CopyError::Gone),
        }
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.shared.cancelled.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(socket) = &self.socket {
            // It may wait for the other process. If that has left, there is nothing to shut down.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
        let Some(thread) = self.thread.take() else { return };
        thread.thread().unpark();
        // Its queue is closed when it ends.
        let until = Instant::now() + END;
        while let Ok(_) | Err(RecvTimeoutError::Timeout) =
            self.results.recv_timeout(until.saturating_duration_since(Instant::now()))
        {
            if Instant::now() >= until {
                tracing::warn!("ram_copy_goes_on: a write does not end");
                return;
            }
        }
        // It was the last thing that it did.
        let _ = thread.join();
    }
}

struct Worker {
    ram: RamView,
    /// To find its holes.
    file: Option<File>,
    sink: Sink,
    shared: Arc<Shared>,
    buffer: Vec<u8>,
}

impl Worker {
    fn carry_out(&mut self, job: Job) -> Result<(), CopyError> {
        match job {
            Job::Copy(pages) => self.copy(&pages),
            Job::End => Ok(self.sink.end()?),
        }
    }

    fn copy(&mut self, pages: &PageSet) -> Result<(), CopyError> {
        let (began, mut written) = (Instant::now(), 0);
        let file = self.file.take();
        let mut holes = Holes::of(file.as_ref());
        for (offset, length) in pages.pieces(MAX_DATA) {
            if self.shared.cancelled.load(Ordering::Relaxed) {
                return Ok(());
            }
            if holes.contain(offset..offset + length) {
                // What the guest writes there from now on is in the next pass.
                written += self.write_zeros(offset, length)?;
            } else {
                self.buffer.resize(length as usize, 0);
                self.ram.read(offset, &mut self.buffer)?;
                written += self.write(offset)?;
            }
            self.keep_to_bandwidth(began, written)?;
        }
        self.sink.end_pass();
        self.file = file;
        Ok(())
    }

    fn write_zeros(&mut self, offset: u64, length: u64) -> Result<u64, SinkError> {
        let took = self.sink.zeros(offset, length)?;
        self.shared.counts.bytes.fetch_add(took, Ordering::Relaxed);
        self.shared.counts.zeros.fetch_add(length / PAGE, Ordering::Relaxed);
        Ok(took)
    }

    /// Writes the piece in the buffer, and returns how many bytes that took.
    fn write(&mut self, offset: u64) -> Result<u64, SinkError> {
        let Self { sink, buffer, shared, .. } = self;
        let (mut at, mut written) = (0, 0);
        for (zeros, run) in runs(buffer) {
            let (from, length) = (offset + at, run.len() as u64);
            let (took, count) = match zeros {
                true => (sink.zeros(from, length)?, &shared.counts.zeros),
                false => (sink.data(from, run)?, &shared.counts.normal),
            };
            shared.counts.bytes.fetch_add(took, Ordering::Relaxed);
            count.fetch_add(length / PAGE, Ordering::Relaxed);
            (at, written) = (at + length, written + took);
        }
        Ok(written)
    }

    /// Waits while more bytes were written since `began` than the bandwidth allows.
    fn keep_to_bandwidth(&mut self, began: Instant, written: u64) -> Result<(), SinkError> {
        let mut told = Instant::now();
        loop {
            let allowed = match self.shared.bandwidth.load(Ordering::Relaxed) {
                0 => return Ok(()),
                allowed => Duration::from_secs_f64(written as f64 / allowed as f64),
            };
            let early = allowed.saturating_sub(began.elapsed());
            // Less is not worth a pause: the thread catches up later.
            if early < Duration::from_millis(1) || self.shared.cancelled.load(Ordering::Relaxed) {
                return Ok(());
            }
            if told.elapsed() >= IDLE {
                self.sink.idle()?;
                told = Instant::now();
            }
            std::thread::park_timeout(early.min(IDLE));
        }
    }
}
