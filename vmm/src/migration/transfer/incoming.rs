//! The new process's side of a transfer: it waits for the old process, adopts RAM, and later gets
//! the state.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::error::ReceiveError;
use super::fds::{CrossingFds, ReceivedFds};
use super::main_channel::IncomingMain;
use super::message::{Handover, Message, Offer};
use super::outgoing::{INITRD_FD, KERNEL_FD, Progress};
use super::wire::{Connection, Frame};
use super::wire_error::WireError;
use crate::boot::BootImage;
use crate::config::TransferChannels;
use crate::keeper::commit::{Claim, CommitPage, PAGE_FD, claim};
use crate::memory::{MemoryConfig, PC_RAM, RamBlock};
use crate::migration::cpr::description::Description;
use crate::state::SavedState;
use crate::unix_listener::Listener;

/// How long a process that has connected may take to offer a guest.
const PATIENCE: Duration = Duration::from_secs(5);

/// Both channels of a process that waits for a guest. Dropping it removes the sockets' files.
#[derive(Debug)]
pub struct Listening {
    cpr: Listener,
    main: IncomingMain,
}

impl Listening {
    /// Listens on both channels.
    pub fn start(channels: TransferChannels, memory: MemoryConfig) -> Result<Self, ReceiveError> {
        if !memory.share {
            return Err(ReceiveError::PrivateRam);
        }
        let main = IncomingMain::listen(channels.main)?;
        Ok(Self { cpr: Listener::bind(&channels.cpr)?, main })
    }

    /// Accepts a connection and greets the process; `None` if there is none.
    pub fn accept(&self, own: &Description) -> Result<Option<Greeting>, ReceiveError> {
        let Some(socket) = self.cpr.accept().map_err(ReceiveError::Accept)? else {
            return Ok(None);
        };
        // An offer follows only its own greeting, and a connection to the main channel precedes it.
        self.main.forget_earlier_connections();
        let (mut connection, until) = (Connection::new(socket)?, Instant::now() + PATIENCE);
        let hello = Message::Hello(Box::new(own.clone()));
        connection.send(&hello, &CrossingFds::default(), until)?;
        Ok(Some(Greeting { connection, until }))
    }

    /// Reads the state that belongs to `handover`.
    pub fn read_state(
        &self,
        handover: &Handover,
        until: Instant,
    ) -> Result<SavedState, ReceiveError> {
        self.main.read(handover.state, until)
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.cpr.as_fd()
    }
}

/// A process that was greeted, and has not offered a guest yet.
#[derive(Debug)]
pub struct Greeting {
    connection: Connection,
    until: Instant,
}

impl Greeting {
    /// Returns the offer once it has come.
    pub fn progress(mut self) -> Result<Progress<Self, Offering>, WireError> {
        const WHAT: &str = "an offer";
        match self.connection.try_receive(WHAT)? {
            None if Instant::now() >= self.until => Err(WireError::Deadline(WHAT)),
            None => Ok(Progress::Waiting(self)),
            Some(Frame { message: Message::Offer(offer), fds }) => Ok(Progress::Done(Offering {
                link: Link::new(self.connection, &offer),
                offer,
                fds,
            })),
            Some(other) => Err(other.unexpected("Offer")),
        }
    }
}

/// A connection over which a guest was offered.
#[derive(Debug)]
pub struct Link {
    connection: Connection,
    deadline: Duration,
}

impl Link {
    fn new(connection: Connection, offer: &Offer) -> Self {
        Self { connection, deadline: Duration::from_millis(offer.deadline_ms) }
    }

    fn send(&mut self, message: &Message) -> Result<(), WireError> {
        let until = Instant::now() + self.deadline;
        self.connection.send(message, &CrossingFds::default(), until)
    }

    /// Tells the old process why this one does not take the guest.
    pub fn refuse(&mut self, why: &impl ToString) {
        // If it does not listen any more, it notices the end of the connection.
        let _ = self.send(&Message::Refused(why.to_string()));
    }

    /// Tells the old process that the guest runs here, which it does in any case.
    pub fn tell_running(&mut self, resumed_ns: Option<u64>) {
        if let Err(error) = self.send(&Message::Running { resumed_ns }) {
            tracing::warn!(%error, "transfer_unconfirmed");
        }
    }
}

/// An offer that has arrived.
#[derive(Debug)]
pub struct Offering {
    /// The connection.
    pub link: Link,
    offer: Offer,
    fds: ReceivedFds,
}

/// What a guest consists of, besides its state.
#[derive(Debug)]
pub struct Parts {
    /// Its RAM, which this process must not change yet.
    pub ram: RamBlock,
    /// Its kernel and initrd.
    pub image: Option<BootImage>,
    /// The commit point.
    pub page: Arc<CommitPage>,
    /// Identifies the set of MSRs from which the saved ones are chosen.
    pub msr_choice: Option<u64>,
}

impl Offering {
    /// Adopts the descriptors, as the command line describes them.
    pub fn adopt(&mut self, memory: MemoryConfig) -> Result<Parts, ReceiveError> {
        let name = format!("ram.{PC_RAM}");
        let ram = self.fds.take(&name).ok_or(WireError::Missing(name))?;
        let ram = RamBlock::adopt(memory, ram)?;
        let page = self.fds.take(PAGE_FD).ok_or(WireError::Missing(PAGE_FD.to_owned()))?;
        let page = Arc::new(CommitPage::adopt(page).map_err(ReceiveError::Page)?);
        let kernel = self.fds.take(KERNEL_FD);
        let image = kernel.map(|kernel| BootImage::adopt(kernel, self.fds.take(INITRD_FD)));
        for name in self.fds.leftover() {
            tracing::warn!(name, "transfer_fd_unused");
        }
        Ok(Parts { ram, image, page, msr_choice: self.offer.msr_choice })
    }

    /// Tells the old process that the machine exists.
    pub fn built(mut self, page: Arc<CommitPage>) -> Result<Built, WireError> {
        self.link.send(&Message::Built)?;
        let until = Instant::now() + self.link.deadline;
        Ok(Built { link: self.link, until, page, msr_choice: self.offer.msr_choice })
    }
}

/// A machine that lacks only its state.
#[derive(Debug)]
pub struct Built {
    /// The connection.
    pub link: Link,
    until: Instant,
    page: Arc<CommitPage>,
    /// Identifies the set of MSRs from which the saved ones are chosen.
    pub msr_choice: Option<u64>,
}

impl Built {
    /// Returns the handover once it has come.
    pub fn handover(&mut self) -> Result<Option<(Box<Handover>, ReceivedFds)>, WireError> {
        const WHAT: &str = "the state of the guest";
        match self.link.connection.try_receive(WHAT)? {
            None if Instant::now() >= self.until => Err(WireError::Deadline(WHAT)),
            None => Ok(None),
            Some(Frame { message: Message::Handover(handover), fds }) => Ok(Some((handover, fds))),
            Some(other) => Err(other.unexpected("Handover")),
        }
    }

    /// Returns the deadline of this process's part, from now on.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.link.deadline
    }

    /// Returns whether this process has claimed the guest.
    pub fn is_claimed(&self) -> bool {
        self.page.point().is_claimed_by(Claim::Successor)
    }

    /// Claims the guest: the commit point. Fails if the old process or its keeper was first.
    pub fn claim(&self) -> Result<(), ReceiveError> {
        match claim(self.page.word(), Claim::Successor) {
            true => Ok(()),
            false => Err(ReceiveError::TakenBack),
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
    /// See [`Built`].
    Built(Box<Built>),
}

impl Stage {
    /// Returns the connection to poll for input, and the time until its deadline.
    pub fn awaits(&self) -> Option<(BorrowedFd<'_>, Duration)> {
        let left = |until: Instant| until.saturating_duration_since(Instant::now());
        match self {
            Self::Listening => None,
            Self::Greeting(greeting) => Some((greeting.connection.as_fd(), left(greeting.until))),
            Self::Built(built) => Some((built.link.connection.as_fd(), left(built.until))),
        }
    }
}
