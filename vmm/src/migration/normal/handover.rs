//! The end of a migration, for which the guest stops: the rest of RAM, the state, and the commit.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpr_qmp::event::EventKind;
use cpr_qmp::migration::{MigrationRamStats, MigrationStatus};

use super::error::NormalError;
use super::outgoing::{Copying, Target};
use super::section::NormalSection;
use crate::keeper::commit::{Claim, CommitPage};
use crate::machine::Machine;
use crate::migration::cpr::fall_back;
use crate::migration::cpr::monotonic::monotonic_ns;
use crate::migration::cpr::phases::Phases;
use crate::migration::cpr::safeguard::Safeguard;
use crate::migration::cpr::update::signal_pending;
use crate::migration::paused::Paused;
use crate::migration::status::Migration;
use crate::migration::transfer::message::Message;
use crate::migration::transfer::wire::{Connection, Frame};
use crate::migration::transfer::{CrossingFds, WireError, timed_io};
use crate::qmp::Server;

/// How long the new process may take to run the guest, once it may.
pub const CONFIRMATION: Duration = Duration::from_secs(3);

/// The parts of the VMM that the end of a migration uses.
pub struct SendContext<'a> {
    /// The machine.
    pub machine: &'a mut Machine,
    /// The QMP server.
    pub qmp: &'a mut Server,
    /// The migration's status.
    pub migration: &'a mut Migration,
    /// What continues the guest if this process fails.
    pub safeguard: &'a Safeguard,
    /// The commit point of that.
    pub page: Arc<CommitPage>,
    /// Readable once this process is to end.
    pub signals: BorrowedFd<'a>,
    /// Set to whether clients were told that the guest has stopped.
    pub stopped: &'a mut bool,
    /// Set once the guest is given up.
    pub given_up: &'a mut bool,
}

/// A guest that was given up here. It stays, stopped.
#[derive(Debug)]
pub struct Sent {
    /// How long no vCPU ran; `None` if none ran before, or if that is unknown.
    pub downtime: Option<Duration>,
    /// What was copied.
    pub ram: MigrationRamStats,
    /// Set if the new process did not confirm that it runs the guest.
    pub unconfirmed: Option<WireError>,
}

impl Copying {
    /// Stops the guest and completes the migration. If that fails, the guest is again as it was
    /// before; the failure has not been reported yet.
    pub fn hand_over(mut self, context: SendContext<'_>) -> Result<Sent, NormalError> {
        match self.complete(context) {
            Ok(sent) => {
                self.keep_file();
                Ok(sent)
            }
            Err(error) => {
                let error = self.explain(error);
                // In the middle of RAM, the end of the connection must do.
                if let (Target::Peer(connection), true) = (&mut self.target, self.ram_ended) {
                    connection.refuse(&error.to_string());
                }
                self.keep_file();
                Err(error)
            }
        }
    }

    fn keep_file(self) {
        if let Target::File(file) = self.target {
            file.keep();
        }
    }

    fn complete(&mut self, context: SendContext<'_>) -> Result<Sent, NormalError> {
        let SendContext { machine, qmp, migration, safeguard, page, signals, stopped, given_up } =
            context;
        fail_point!(Helper);
        let until = Instant::now() + self.deadline();
        let _watched = safeguard.watched(self.deadline() + CONFIRMATION);
        let retracted = match &self.target {
            Target::File(file) => Some(fall_back::retracted(file.retraction().clone())),
            Target::Peer(_) => None,
        };
        fail_point!(Pause);
        let mut phases = Phases::outgoing();
        let paused = Paused::pause(machine)?;
        let paused_ns = monotonic_ns();
        if paused.before().is_running() {
            qmp.broadcast(&EventKind::Stop.now());
            *stopped = true;
        }
        fail_point!(Paused);
        let device = migration.advance(MigrationStatus::Device);
        device.into_iter().for_each(|event| qmp.broadcast(&event));
        safeguard.set_told_stopped(*stopped);
        qmp.flush_published();
        self.copier.set_bandwidth(0);
        self.copier.wait(until)?;
        self.copier.copy(paused.take_dirty_pages()?)?;
        // Meanwhile:
        fail_point!(Save);
        let mut state = paused.save(&self.formats)?;
        audit_point!(paused, Old);
        // Saving a vCPU may let KVM write to RAM.
        self.copier.wait(until)?;
        self.copier.copy(paused.take_dirty_pages()?)?;
        let (before, events) = (paused.before(), paused.unhandled_events());
        NormalSection::new(before, events, paused.msr_choice()).put(&mut state);
        let (state, fingerprint) = state.encode(self.formats.state);
        phases.stamp("save");
        self.copier.wait(until)?;
        self.copier.end()?;
        self.copier.wait(until)?;
        self.ram_ended = true;
        phases.stamp("ram");
        fail_point!(Channel);
        if signal_pending(signals) {
            return Err(NormalError::AskedToEnd);
        }
        match &mut self.target {
            Target::File(file) => file.finish(&state)?,
            Target::Peer(connection) => {
                send(connection, &Message::State(fingerprint), until)?;
                timed_io::write_all(connection.as_fd(), &state, "the state", until)?;
                phases.stamp("sent");
                match connection.receive("that it has loaded the guest", until)? {
                    Frame { message: Message::Loaded, .. } => {}
                    other => return Err(other.unexpected("Loaded").into()),
                }
            }
        }
        phases.stamp("loaded");
        // The file is whole; as a copy, it does no harm if the guest runs on.
        drop(retracted);
        fail_point!(Commit);
        // From here on, neither this process nor its keeper continues the guest by itself.
        page.claim_or_end(Claim::Successor);
        *given_up = true;
        paused.give_up();
        let (resumed_ns, unconfirmed) = match &mut self.target {
            Target::File(_) => (Some(monotonic_ns()), None),
            Target::Peer(connection) => match let_run(connection) {
                // The other host's clock does not count.
                Ok(()) => (Some(monotonic_ns()), None),
                Err(error) => (None, Some(error)),
            },
        };
        let downtime = resumed_ns.filter(|_| before.is_running());
        let downtime = downtime.map(|at| Duration::from_nanos(at.saturating_sub(paused_ns)));
        tracing::info!(
            downtime_us = downtime.map(|time| time.as_micros() as u64),
            phases = phases.since(paused_ns),
            "normal_handover"
        );
        Ok(Sent { downtime, ram: self.stats(), unconfirmed })
    }
}

/// Tells the new process that the guest is its own, and waits until it runs there.
fn let_run(connection: &mut Connection) -> Result<(), WireError> {
    let until = Instant::now() + CONFIRMATION;
    send(connection, &Message::Run, until)?;
    match connection.receive("that it runs the guest", until)? {
        Frame { message: Message::Running { .. }, .. } => Ok(()),
        other => Err(other.unexpected("Running")),
    }
}

fn send(connection: &mut Connection, message: &Message, until: Instant) -> Result<(), WireError> {
    connection.send(message, &CrossingFds::default(), until)
}
