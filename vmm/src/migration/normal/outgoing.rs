//! The old process's side while the guest runs: it meets the new process, or opens the file, and
//! copies RAM until the rest is small.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use cpr_qmp::address::MigrationAddress;
use cpr_qmp::migration::MigrationRamStats;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::copier::Copier;
use super::error::NormalError;
use super::peer::{self, PeerError};
use super::progress::Passes;
use super::sink::Sink;
use super::snapshot::OutgoingSnapshot;
use crate::config::PeerAddress;
use crate::machine::{Machine, SECTIONS};
use crate::migration::channel;
use crate::migration::cpr::description::Description;
use crate::migration::transfer::message::{Message, Start};
use crate::migration::transfer::outgoing::Progress;
use crate::migration::transfer::wire::{Connection, Frame};
use crate::migration::transfer::{CrossingFds, WireError};
use crate::state::Formats;
use crate::switch::Switch;

/// How long the new process may take to greet this one.
const GREETING: Duration = Duration::from_secs(10);

/// What an operator may change while RAM is copied.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `max-bandwidth`, in bytes per second; 0: any.
    pub bandwidth: u64,
    /// `downtime-limit`.
    pub downtime: Duration,
}

/// A migration whose guest still runs here.
#[derive(Debug)]
pub struct Outgoing {
    stage: Stage,
    deadline: Duration,
}

#[derive(Debug)]
enum Stage {
    Connecting { peer: PeerAddress, socket: OwnedFd, until: Instant },
    Greeting { connection: Connection, until: Instant },
    Copying(Box<Copying>),
}

/// RAM is being copied.
#[derive(Debug)]
pub struct Copying {
    // Field order is drop order: the thread ends before what it writes to.
    pub(super) copier: Copier,
    pub(super) target: Target,
    pub(super) formats: Formats,
    pub(super) deadline: Duration,
    /// Messages can be sent again.
    pub(super) ram_ended: bool,
    passes: Passes,
    expected: Option<Duration>,
}

/// Where the guest goes.
#[derive(Debug)]
pub(super) enum Target {
    File(Box<OutgoingSnapshot>),
    Peer(Connection),
}

/// What has happened, for clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// RAM is being copied from now on.
    Active,
    /// A pass over RAM has begun, and the guest runs on.
    Pass(u64),
}

impl Outgoing {
    /// Opens the file, or begins to connect to the new process.
    pub fn start(
        address: &MigrationAddress,
        machine: &Machine,
        deadline: Duration,
        follow_symlinks: Switch,
        limits: Limits,
    ) -> Result<Self, NormalError> {
        let stage = match address {
            MigrationAddress::File(_) => {
                let path = channel::file_path(address)?;
                let file = OutgoingSnapshot::create(path, follow_symlinks, machine.ram())?;
                let (ram, start) = file.ram().map_err(NormalError::Thread)?;
                let sink = Sink::file(ram, start);
                let target = Target::File(Box::new(file));
                let formats = Formats::newest(&SECTIONS);
                Stage::Copying(Copying::start(machine, sink, target, formats, deadline, limits)?)
            }
            other => {
                let peer = PeerAddress::of(other).map_err(PeerError::from)?;
                let socket = peer::connect(&peer)?;
                Stage::Connecting { peer, socket, until: Instant::now() + GREETING }
            }
        };
        Ok(Self { stage, deadline })
    }

    /// Does what has become possible, and tells `report` what happened.
    pub fn progress(
        self,
        machine: &Machine,
        own: &Description,
        limits: Limits,
        report: &mut dyn FnMut(Step),
    ) -> Result<Progress<Self, Box<Copying>>, NormalError> {
        let Self { stage, deadline } = self;
        let stage = match stage {
            Stage::Connecting { peer, socket, until } => match is_writable(&socket) {
                false if Instant::now() < until => Stage::Connecting { peer, socket, until },
                false => return Err(WireError::Deadline("that it accepts").into()),
                true => {
                    peer::connected(&peer, &socket)?;
                    Stage::Greeting { connection: Connection::new(socket)?, until }
                }
            },
            Stage::Greeting { connection, until } => {
                greet(connection, until, machine, own, deadline, limits)?
            }
            Stage::Copying(copying) => match copying.progress(machine, limits, report)? {
                Progress::Waiting(copying) => Stage::Copying(copying),
                Progress::Done(copied) => return Ok(Progress::Done(copied)),
            },
        };
        Ok(Progress::Waiting(Self { stage, deadline }))
    }

    /// Returns the descriptor to poll, for what, and for how long.
    pub fn awaits(&self) -> (BorrowedFd<'_>, PollFlags, Option<Duration>) {
        let left = |until: &Instant| Some(until.saturating_duration_since(Instant::now()));
        match &self.stage {
            Stage::Connecting { socket, until, .. } => {
                (socket.as_fd(), PollFlags::POLLOUT, left(until))
            }
            Stage::Greeting { connection, until } => {
                (connection.as_fd(), PollFlags::POLLIN, left(until))
            }
            Stage::Copying(copying) => (copying.copier.fd(), PollFlags::POLLIN, None),
        }
    }

    /// Returns what has been copied; `None` before it begins.
    pub fn stats(&self) -> Option<(MigrationRamStats, Option<Duration>)> {
        match &self.stage {
            Stage::Copying(copying) => Some((copying.stats(), copying.expected)),
            _ => None,
        }
    }

    /// Applies limits that an operator has changed.
    pub fn set_limits(&self, limits: Limits) {
        if let Stage::Copying(copying) = &self.stage {
            copying.copier.set_bandwidth(limits.bandwidth);
        }
    }

    /// Tells the new process why it does not get the guest, if it still listens.
    pub fn refuse(&mut self, why: &str) {
        if let Stage::Greeting { connection, .. } = &mut self.stage {
            connection.refuse(why);
        }
        // In the middle of RAM, the end of the connection must do.
    }
}

fn is_writable(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Checks the new process's greeting, if it has come, and begins to copy RAM to it.
fn greet(
    mut connection: Connection,
    until: Instant,
    machine: &Machine,
    own: &Description,
    deadline: Duration,
    limits: Limits,
) -> Result<Stage, NormalError> {
    const WHAT: &str = "its greeting";
    let new = match connection.try_receive(WHAT)? {
        None if Instant::now() < until => return Ok(Stage::Greeting { connection, until }),
        None => return Err(WireError::Deadline(WHAT).into()),
        Some(Frame { message: Message::Hello(new), .. }) => new,
        Some(other) => return Err(other.unexpected("Hello").into()),
    };
    let fits = match own.transfer_difference(&new) {
        Some(difference) => Err(difference),
        None => own.formats(&new).and_then(|formats| {
            machine.check_formats(&formats).map(|()| formats).map_err(|error| error.to_string())
        }),
    };
    let formats = fits.map_err(|difference| {
        connection.refuse(&format!("the new VMM {difference}"));
        NormalError::Differs(difference)
    })?;
    let start = Start { deadline_ms: deadline.as_millis() as u64, ram: vec![machine.ram().info()] };
    connection.send(&Message::Start(start), &CrossingFds::default(), until)?;
    let socket = connection.as_fd().try_clone_to_owned().map_err(NormalError::Thread)?;
    let target = Target::Peer(connection);
    let copying = Copying::start(machine, Sink::socket(socket), target, formats, deadline, limits)?;
    Ok(Stage::Copying(copying))
}

impl Copying {
    fn start(
        machine: &Machine,
        sink: Sink,
        target: Target,
        formats: Formats,
        deadline: Duration,
        limits: Limits,
    ) -> Result<Box<Self>, NormalError> {
        let copier = Copier::start(machine.ram(), sink, limits.bandwidth);
        let copier = copier.map_err(NormalError::Thread)?;
        let passes = Passes::new(machine.ram().size());
        Ok(Box::new(Self {
            copier,
            target,
            formats,
            deadline,
            ram_ended: false,
            passes,
            expected: None,
        }))
    }

    /// Begins the next pass once one has ended; done if the guest can stop for the rest.
    fn progress(
        mut self: Box<Self>,
        machine: &Machine,
        limits: Limits,
        report: &mut dyn FnMut(Step),
    ) -> Result<Progress<Box<Self>, Box<Self>>, NormalError> {
        let first = self.passes.is_first();
        match self.copier.finished() {
            None if !first => return Ok(Progress::Waiting(self)),
            Some(Err(error)) => return Err(self.explain(error.into())),
            _ => {}
        }
        let dirty = machine.take_dirty_pages()?;
        let rest = dirty.bytes();
        let pass = self.passes.next(self.copier.counts(), rest);
        self.expected = self.passes.expected(rest);
        if first {
            report(Step::Active);
        }
        self.copier.copy(dirty)?;
        // The guest stops during this pass, which copies what it has written before.
        let limit = limits.downtime.min(self.deadline / 2);
        let soon = rest == 0 || self.expected.is_some_and(|expected| expected <= limit);
        if !first && soon {
            return Ok(Progress::Done(self));
        }
        report(Step::Pass(pass));
        Ok(Progress::Waiting(self))
    }

    /// Returns the reason that the new process gives, if it ended the connection with one.
    pub(super) fn explain(&mut self, error: NormalError) -> NormalError {
        let Target::Peer(connection) = &mut self.target else { return error };
        match connection.try_receive("a reason") {
            Ok(Some(Frame { message: Message::Refused(why), .. })) => {
                WireError::refused(&why).into()
            }
            _ => error,
        }
    }

    /// Returns what has been copied.
    pub fn stats(&self) -> MigrationRamStats {
        self.passes.stats(self.copier.counts())
    }

    /// Returns how long each process may take once the guest is stopped.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }
}
