//! The new process's side: it waits for the old process, receives RAM, then the state, and runs the
//! guest once the old process has given it up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{Shutdown, shutdown};

use super::error::NormalLoadError;
use super::peer::PeerListener;
use super::ram_stream::{self, RamStreamError};
use crate::config::PeerAddress;
use crate::memory::RamBlock;
use crate::migration::cpr::description::Description;
use crate::migration::transfer::message::{Message, Start};
use crate::migration::transfer::outgoing::Progress;
use crate::migration::transfer::timed_io::TimedReader;
use crate::migration::transfer::wire::{Connection, Frame};
use crate::migration::transfer::{CrossingFds, WireError};
use crate::state::{FrameError, SavedState, SectionError};
use crate::worker_thread::{self, SignalEnd};

/// How long a process that has connected may take to begin.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest time that an old process may take once its guest is stopped.
const MAX_DEADLINE: Duration = Duration::from_secs(120);
/// How long the old process may send nothing while RAM is copied: twice as long as it waits before
/// it says that it is alive, and for a busy host.
const SILENCE: Duration = Duration::from_secs(30);
const RAM: &str = "the rest of guest RAM";
const STATE: &str = "the saved state";

/// A process that waits for a guest. Dropping it removes a Unix socket's file.
#[derive(Debug)]
pub struct Listening(PeerListener);

impl Listening {
    /// Listens on `address`.
    pub fn start(address: PeerAddress) -> Result<Self, NormalLoadError> {
        Ok(Self(PeerListener::bind(address)?))
    }

    /// Accepts a connection and greets the process; `None` if there is none.
    pub fn accept(&self, own: &Description) -> Result<Option<Greeting>, NormalLoadError> {
        let Some(socket) = self.0.accept().map_err(NormalLoadError::Accept)? else {
            return Ok(None);
        };
        let (mut connection, until) = (Connection::new(socket)?, Instant::now() + PATIENCE);
        let hello = Message::Hello(Box::new(own.clone()));
        connection.send(&hello, &CrossingFds::default(), until)?;
        Ok(Some(Greeting { connection, until }))
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A process that was greeted, and has not begun yet.
#[derive(Debug)]
pub struct Greeting {
    connection: Connection,
    until: Instant,
}

impl Greeting {
    /// Begins to receive RAM once the process sends it.
    pub fn progress(
        mut self,
        ram: &RamBlock,
    ) -> Result<Progress<Self, Receiving>, NormalLoadError> {
        const WHAT: &str = "what the guest consists of";
        match self.connection.try_receive(WHAT)? {
            None if Instant::now() >= self.until => Err(WireError::Deadline(WHAT).into()),
            None => Ok(Progress::Waiting(self)),
            Some(Frame { message: Message::Start(start), .. }) => {
                let received = Receiving::start(self.connection, &start, ram)?;
                Ok(Progress::Done(received))
            }
            Some(other) => Err(other.unexpected("Start").into()),
        }
    }
}

/// RAM is being received, by a thread.
#[derive(Debug)]
pub struct Receiving {
    connection: Connection,
    deadline: Duration,
    ended: Arc<EventFd>,
    thread: Option<JoinHandle<Result<(), RamStreamError>>>,
}

impl Receiving {
    fn start(
        mut connection: Connection,
        start: &Start,
        ram: &RamBlock,
    ) -> Result<Self, NormalLoadError> {
        if start.ram != [ram.info()] {
            let found = start.ram.iter().fold(0_u64, |sum, block| sum.saturating_add(block.size));
            let error = NormalLoadError::OtherSize { found, expected: ram.size() };
            connection.refuse(&error.to_string());
            return Err(error);
        }
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let ended = EventFd::from_flags(flags);
        let ended = Arc::new(ended.map_err(|errno| NormalLoadError::Thread(errno.into()))?);
        let socket = connection.as_fd().try_clone_to_owned().map_err(NormalLoadError::Thread)?;
        let (view, end, fresh) = (ram.view(), SignalEnd(ended.clone()), !ram.outlives_process());
        let thread = worker_thread::spawn("ram-receive", move || {
            let _end = end;
            ram_stream::receive(&mut Patient(socket), &view, fresh)
        });
        let thread = Some(thread.map_err(NormalLoadError::Thread)?);
        // It does not serve QMP meanwhile.
        let deadline = Duration::from_millis(start.deadline_ms).min(MAX_DEADLINE);
        Ok(Self { connection, deadline, ended, thread })
    }

    /// Tells the old process why this one does not take the guest.
    pub fn refuse(&mut self, why: &impl ToString) {
        self.connection.refuse(&why.to_string());
    }

    /// Returns the connection, once all RAM has arrived.
    pub fn progress(mut self) -> Result<Progress<Self, Received>, NormalLoadError> {
        if self.ended.read().is_err() {
            return Ok(Progress::Waiting(self));
        }
        let Some(thread) = self.thread.take() else { return Ok(Progress::Waiting(self)) };
        let panicked = |_| Err(RamStreamError::Read(io::Error::other("it panicked")));
        if let Err(error) = thread.join().unwrap_or_else(panicked) {
            self.connection.refuse(&error.to_string());
            return Err(error.into());
        }
        let connection = self.connection.as_fd().try_clone_to_owned();
        let connection = Connection::new(connection.map_err(NormalLoadError::Thread)?)?;
        Ok(Progress::Done(Received { connection, until: Instant::now() + self.deadline }))
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        // It waits for nothing but the socket.
        let _ = shutdown(std::os::fd::AsRawFd::as_raw_fd(&self.connection.as_fd()), Shutdown::Both);
        let _ = thread.join();
    }
}

/// A socket whose sender must send something now and then.
struct Patient(OwnedFd);

impl io::Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let until = Instant::now() + SILENCE;
        TimedReader { fd: self.0.as_fd(), what: RAM, until }.read(buffer)
    }
}

/// A guest whose RAM is here, and which is stopped in the old process.
#[derive(Debug)]
pub struct Received {
    connection: Connection,
    until: Instant,
}

impl Received {
    /// Waits for the state.
    pub fn state(&mut self) -> Result<SavedState, NormalLoadError> {
        let expected = match self.connection.receive(STATE, self.until)? {
            Frame { message: Message::State(fingerprint), .. } => fingerprint,
            other => return Err(other.unexpected("State").into()),
        };
        let fd = self.connection.as_fd();
        let mut stream = TimedReader { fd, what: STATE, until: self.until };
        let read = SavedState::read(&mut stream).map_err(|error| match error {
            SectionError::Frames(FrameError::Read(error)) => {
                NormalLoadError::RamStream(RamStreamError::Read(error))
            }
            other => other.into(),
        });
        match read? {
            (state, found) if found == expected => Ok(state),
            _ => Err(NormalLoadError::OtherState),
        }
    }

    /// Tells the old process why this one does not take the guest.
    pub fn refuse(&mut self, why: &impl ToString) {
        self.connection.refuse(&why.to_string());
    }

    /// Tells the old process that the guest is loaded, and waits until that has given it up.
    pub fn await_run(&mut self) -> Result<(), NormalLoadError> {
        self.connection.send(&Message::Loaded, &CrossingFds::default(), self.until)?;
        match self.connection.receive("that it has given the guest up", self.until) {
            Ok(Frame { message: Message::Run, .. }) => Ok(()),
            Ok(other) => Err(other.unexpected("Run").into()),
            Err(error) => Err(NormalLoadError::Unsettled(error)),
        }
    }

    /// Tells the old process that the guest runs here, which it does in any case.
    pub fn tell_running(&mut self, resumed_ns: Option<u64>) {
        let until = Instant::now() + PATIENCE;
        let running = Message::Running { resumed_ns };
        if let Err(error) = self.connection.send(&running, &CrossingFds::default(), until) {
            tracing::warn!(%error, "normal_unconfirmed");
        }
    }
}

/// How far a process is that waits for a guest.
#[derive(Debug)]
pub enum Stage {
    /// No process has connected.
    Listening,
    /// See [`Greeting`].
    Greeting(Greeting),
    /// See [`Receiving`].
    Receiving(Receiving),
}

impl Stage {
    /// Returns what to poll for input, and the time until its deadline.
    pub fn awaits(&self) -> Option<(BorrowedFd<'_>, Option<Duration>)> {
        match self {
            Self::Listening => None,
            Self::Greeting(Greeting { connection, until }) => {
                let left = until.saturating_duration_since(Instant::now());
                Some((connection.as_fd(), Some(left)))
            }
            Self::Receiving(receiving) => Some((receiving.ended.as_fd(), None)),
        }
    }
}
