//! The old process's side of a transfer while the guest is paused: save, hand over, give up.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use cpr_qmp::event::EventKind;
use cpr_qmp::migration::MigrationStatus;

use super::error::TransferError;
use super::fds::CrossingFds;
use super::main_channel::OutgoingMain;
use super::message::{Handover, Message};
use super::outgoing::Ready;
use super::wire::{Connection, Frame};
use crate::machine::Machine;
use crate::migration::cpr::fall_back;
use crate::migration::cpr::monotonic::monotonic_ns;
use crate::migration::cpr::outgoing::SerialHandOver;
use crate::migration::cpr::phases::Phases;
use crate::migration::cpr::safeguard::Safeguard;
use crate::migration::cpr::update::signal_pending;
use crate::migration::paused::Paused;
use crate::migration::status::Migration;
use crate::qmp::Server;

/// The parts of the VMM that a handover uses.
pub struct HandoverContext<'a> {
    /// The machine.
    pub machine: &'a mut Machine,
    /// The QMP server.
    pub qmp: &'a mut Server,
    /// The migration's status.
    pub migration: &'a mut Migration,
    /// What continues the guest if this process fails.
    pub safeguard: &'a Safeguard,
    /// Becomes readable when a termination signal arrives.
    pub signals: BorrowedFd<'a>,
    /// Set to whether clients were told that the guest has stopped.
    pub stopped: &'a mut bool,
}

/// A guest that runs in another process.
#[derive(Clone, Copy, Debug)]
pub struct HandedOver {
    /// Whether that process has the serial port's descriptors.
    pub serial_moves: bool,
    /// How long no vCPU ran; `None` if none ran before.
    pub downtime: Option<Duration>,
}

/// A saved guest, about to be sent.
struct Outgoing<'a> {
    handover: Handover,
    fds: CrossingFds<'a>,
    state: Vec<u8>,
    main: &'a mut OutgoingMain,
}

impl Ready {
    /// Pauses the guest, and hands it over. If that fails, the guest is again as it was before; the
    /// failure has not been reported yet.
    pub fn hand_over(self, context: HandoverContext<'_>) -> Result<HandedOver, TransferError> {
        let HandoverContext { machine, qmp, migration, safeguard, signals, stopped } = context;
        let Self { offered, mut connection, mut main, deadline, serial_moves, formats } = self;
        fail_point!(Helper);
        let _watched = safeguard.watched(deadline);
        let _retracted = main.retraction().map(fall_back::retracted);
        // The keeper's own deadline is later than that of every wait below.
        let until = Instant::now() + deadline;
        migration.set_up();
        fail_point!(Pause);
        let mut phases = Phases::outgoing();
        let paused = Paused::pause(machine)?;
        let paused_ns = monotonic_ns();
        // Dropped before `paused`: the guest must not run here before it is taken back.
        let mut offered = offered;
        if paused.before().is_running() {
            qmp.broadcast(&EventKind::Stop.now());
            *stopped = true;
        }
        fail_point!(Paused);
        for status in [MigrationStatus::Active, MigrationStatus::Device] {
            migration.advance(status).into_iter().for_each(|event| qmp.broadcast(&event));
        }
        fail_point!(Save);
        let (state, fingerprint) = paused.save(&formats)?.encode(formats.state);
        phases.stamp("save");
        audit_point!(paused, Old);
        safeguard.set_told_stopped(*stopped);
        qmp.flush_published();
        let serial = match serial_moves {
            true => SerialHandOver::of(&paused),
            false => SerialHandOver::none(),
        };
        let mut fds = CrossingFds::default();
        for &(name, fd) in &serial.fds {
            // SAFETY: the serial port closes its descriptors on this thread only, in its service.
            fds.add(name, unsafe { BorrowedFd::borrow_raw(fd) });
        }
        let handover = Handover {
            run_state: paused.before(),
            state: fingerprint,
            pending_events: paused.unhandled_events(),
            paused_ns,
            serial_listener: serial.listener,
            descriptors: fds.names(),
        };
        fail_point!(Channel);
        if signal_pending(signals) {
            return Err(TransferError::AskedToEnd);
        }
        let outgoing = Outgoing { handover, fds, state, main: &mut main };
        outgoing.main.write_file(&outgoing.state)?;
        offered.state_is_sent();
        let sent = outgoing.send(&mut connection, &mut phases, until);
        // The answer may be lost, or come too late: only the claim counts.
        if let Err(error) = &sent {
            tracing::warn!(%error, "transfer_unconfirmed");
        }
        let resumed_ns = match (sent, offered.take_back()) {
            (Ok(resumed_ns), false) => resumed_ns,
            (Err(_), false) => paused.before().is_running().then(monotonic_ns),
            (Err(error), true) => return Err(error),
            (Ok(_), true) => return Err(TransferError::Unclaimed),
        };
        let downtime = resumed_ns.map(|at| Duration::from_nanos(at.saturating_sub(paused_ns)));
        paused.give_up();
        main.keep();
        tracing::info!(
            downtime_us = downtime.map(|time| time.as_micros() as u64),
            phases = phases.since(paused_ns),
            "transfer_handover"
        );
        Ok(HandedOver { serial_moves, downtime })
    }
}

impl Outgoing<'_> {
    /// Sends everything, and waits until the new process has claimed the guest. Returns when its
    /// vCPUs ran again.
    fn send(
        self,
        connection: &mut Connection,
        phases: &mut Phases,
        until: Instant,
    ) -> Result<Option<u64>, TransferError> {
        connection.send(&Message::Handover(Box::new(self.handover)), &self.fds, until)?;
        self.main.send(&self.state, until)?;
        phases.stamp("sent");
        match connection.receive("that it runs the guest", until)? {
            Frame { message: Message::Running { resumed_ns }, .. } => Ok(resumed_ns),
            other => Err(other.unexpected("Running").into()),
        }
    }
}
