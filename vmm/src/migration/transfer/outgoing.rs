//! The old process's side of a transfer while the guest runs: it meets the new process, offers it
//! the guest, and waits until it has built the machine.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpr_qmp::address::{MigrationChannel, MigrationChannelType};

use super::error::TransferError;
use super::fds::CrossingFds;
use super::main_channel::OutgoingMain;
use super::message::{Message, Offer};
use super::offer::Offered;
use super::timed_io;
use super::wire::{Connection, Frame};
use crate::config::{TransferChannels, main_channel, unix_path};
use crate::keeper::commit::{CommitPage, PAGE_FD};
use crate::machine::Machine;
use crate::migration::cpr::description::Description;
use crate::state::Formats;
use crate::switch::Switch;

/// The name of the descriptor of the kernel's memfd.
pub const KERNEL_FD: &str = "boot.kernel";
/// The name of the descriptor of the initrd's memfd.
pub const INITRD_FD: &str = "boot.initrd";

/// Whether what was awaited has come.
pub enum Progress<W, D> {
    /// Not yet.
    Waiting(W),
    /// It has.
    Done(D),
}

/// A connection to the new process, and what belongs to it.
#[derive(Debug)]
struct Link {
    connection: Connection,
    main: OutgoingMain,
    deadline: Duration,
    until: Instant,
}

impl Link {
    fn time_left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Waits for a message without blocking.
    fn message(&mut self, what: &'static str) -> Result<Option<Frame>, TransferError> {
        let frame = self.connection.try_receive(what)?;
        if frame.is_none() && self.time_left().is_zero() {
            return Err(super::wire_error::WireError::Deadline(what).into());
        }
        Ok(frame)
    }

    /// Tells the new process why it does not get the guest, if it still listens.
    fn refuse(&mut self, why: &str) {
        self.connection.refuse(why);
    }
}

/// Returns the two channels that `migrate` names.
pub fn channels(given: Option<&[MigrationChannel]>) -> Result<TransferChannels, TransferError> {
    let find = |kind| given.unwrap_or_default().iter().find(|c| c.channel_type == kind);
    let cpr = &find(MigrationChannelType::Cpr).ok_or(TransferError::NoCprChannel)?.addr;
    let cpr = unix_path(cpr).ok_or(TransferError::CprChannel(cpr.kind()))?;
    let main = find(MigrationChannelType::Main).ok_or(TransferError::MainChannel("nothing"))?;
    let main = main_channel(&main.addr).ok_or(TransferError::MainChannel(main.addr.kind()))?;
    Ok(TransferChannels { main, cpr })
}

/// Waits for the new process's greeting.
#[derive(Debug)]
pub struct Calling(Link);

impl Calling {
    /// Connects to the new process.
    pub fn start(
        channels: TransferChannels,
        deadline: Duration,
        follow_symlinks: Switch,
    ) -> Result<Self, TransferError> {
        let main = OutgoingMain::open(channels.main, follow_symlinks)?;
        let connection = Connection::new(timed_io::connect(&channels.cpr)?)?;
        let until = Instant::now() + deadline;
        Ok(Self(Link { connection, main, deadline, until }))
    }

    /// Checks the greeting, if it has come, against this VMM's own description.
    pub fn progress(mut self, own: &Description) -> Result<Progress<Self, Greeted>, TransferError> {
        const WHAT: &str = "its greeting";
        let new = match self.0.message(WHAT)? {
            None => return Ok(Progress::Waiting(self)),
            Some(Frame { message: Message::Hello(new), .. }) => new,
            Some(other) => return Err(other.unexpected("Hello").into()),
        };
        if let Some(difference) = own.transfer_difference(&new) {
            self.0.refuse(&format!("the new VMM {difference}"));
            return Err(TransferError::Differs(difference));
        }
        let formats = own.formats(&new).map_err(TransferError::Differs)?;
        // A port that is connected elsewhere in the new process stays behind.
        let serial_moves = own.devices.get("serial") == new.devices.get("serial");
        Ok(Progress::Done(Greeted { link: self.0, serial_moves, formats }))
    }
}

/// A new process that can take over the guest.
#[derive(Debug)]
pub struct Greeted {
    link: Link,
    serial_moves: bool,
    formats: Formats,
}

impl Greeted {
    /// Offers the guest.
    pub fn offer(
        mut self,
        machine: &Machine,
        page: Arc<CommitPage>,
    ) -> Result<Waiting, TransferError> {
        if let Err(too_old) = machine.check_formats(&self.formats) {
            self.link.refuse(&format!("the new VMM {too_old}"));
            return Err(TransferError::Differs(too_old.to_string()));
        }
        let ram = machine.ram();
        let ram_fd = ram.fd().ok_or(TransferError::PrivateRam(ram.name()))?;
        self.link.main = self.link.main.connect()?;
        // From here on, the new process might claim the guest.
        let offered = Offered::new(page);
        let mut fds = CrossingFds::default();
        fds.add(format!("ram.{}", ram.name()), ram_fd);
        if let Some(image) = machine.image() {
            fds.add(KERNEL_FD, image.kernel_fd());
            if let Some(initrd) = image.initrd_fd() {
                fds.add(INITRD_FD, initrd);
            }
        }
        fds.add(PAGE_FD, offered.as_fd());
        let Link { connection, deadline, until, .. } = &mut self.link;
        let offer = Offer {
            deadline_ms: deadline.as_millis() as u64,
            msr_choice: machine.msr_choice(),
            descriptors: fds.names(),
        };
        connection.send(&Message::Offer(offer), &fds, *until)?;
        drop(fds);
        let Self { link, serial_moves, formats } = self;
        Ok(Waiting { offered, link, serial_moves, formats })
    }
}

/// Waits until the new process has built the machine.
#[derive(Debug)]
pub struct Waiting {
    // Field order is drop order: the offer ends before the connection does.
    offered: Offered,
    link: Link,
    serial_moves: bool,
    formats: Formats,
}

impl Waiting {
    /// Returns the new process once it has built the machine.
    pub fn progress(mut self) -> Result<Progress<Self, Ready>, TransferError> {
        match self.link.message("that it has built the machine")? {
            None => Ok(Progress::Waiting(self)),
            Some(Frame { message: Message::Built, .. }) => {
                let Self { offered, link, serial_moves, formats } = self;
                let Link { connection, main, deadline, .. } = link;
                Ok(Progress::Done(Ready {
                    offered,
                    connection,
                    main,
                    deadline,
                    serial_moves,
                    formats,
                }))
            }
            Some(other) => Err(other.unexpected("Built").into()),
        }
    }
}

/// A new process that lacks only the state.
#[derive(Debug)]
pub struct Ready {
    pub(super) offered: Offered,
    pub(super) connection: Connection,
    pub(super) main: OutgoingMain,
    pub(super) deadline: Duration,
    pub(super) serial_moves: bool,
    pub(super) formats: Formats,
}

impl Ready {
    /// Returns how long each process may take for its part.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }
}

/// A transfer whose guest still runs here.
#[derive(Debug)]
pub enum Outgoing {
    /// See [`Calling`].
    Calling(Calling),
    /// See [`Waiting`].
    Waiting(Waiting),
}

impl Outgoing {
    fn link(&self) -> &Link {
        match self {
            Self::Calling(calling) => &calling.0,
            Self::Waiting(waiting) => &waiting.link,
        }
    }

    fn link_mut(&mut self) -> &mut Link {
        match self {
            Self::Calling(calling) => &mut calling.0,
            Self::Waiting(waiting) => &mut waiting.link,
        }
    }

    /// Returns the descriptor to poll for input.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.link().connection.as_fd()
    }

    /// Returns the time until the deadline.
    pub fn time_left(&self) -> Duration {
        self.link().time_left()
    }

    /// Ends the transfer at the operator's request.
    pub fn cancel(mut self) {
        self.link_mut().refuse("the transfer was cancelled");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(kind: &str, address: &str) -> MigrationChannel {
        let text = format!(r#"{{"channel-type":"{kind}","addr":{{{address}}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn channels_are_refused_by_name() {
        let unix = r#""transport":"socket","type":"unix","path":"/s""#;
        let vsock = r#""transport":"socket","type":"vsock","cid":"1","port":"2""#;
        let file = r#""transport":"file","filename":"/f","offset":0"#;
        let (main, cpr) = (channel("main", unix), channel("cpr", unix));
        channels(Some(&[main.clone(), cpr.clone()])).unwrap();
        channels(Some(&[cpr.clone(), channel("main", file)])).unwrap();
        let refused = |given: Option<&[MigrationChannel]>| channels(given).unwrap_err().to_string();
        let texts = [
            refused(None),
            refused(Some(std::slice::from_ref(&main))),
            refused(Some(&[main, channel("cpr", file)])),
            refused(Some(&[cpr, channel("main", vsock)])),
        ];
        insta::assert_debug_snapshot!(texts);
    }
}
