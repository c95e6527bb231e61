//! Carries out `migrate` in mode `cpr-transfer`: the glue between QMP, the main loop and the
//! transfer of the guest.

use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use cpr_qmp::command::MigrateArgs;
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::{MigMode, MigrationStatus};
use cpr_qmp::run_state::RunState;

use super::protected::said;
use super::{Vmm, answers};
use crate::migration::blockers::blocked_reasons;
use crate::migration::cpr::description::Description;
use crate::migration::cpr::headroom;
use crate::migration::cpr::plan::{self, Refused, check_run_state};
use crate::migration::cpr::update;
use crate::migration::status::Times;
use crate::migration::transfer::TransferError;
use crate::migration::transfer::handover::{HandedOver, HandoverContext};
use crate::migration::transfer::outgoing::{self, Calling, Outgoing, Progress, Ready};
use crate::qmp::ConnectionId;

/// How long after its deadline a handover counts as hanging: each of its waits has that deadline.
/// Less than the keeper's grace.
const HANG: Duration = Duration::from_secs(1);
/// The descriptors that a transfer opens for a moment.
const TRANSFER_FDS: usize = 8;

impl Vmm {
    /// Handles `migrate` in mode `cpr-transfer`. It is answered once the new process is connected;
    /// the guest runs on while that prepares.
    pub(super) fn transfer(&mut self, client: ConnectionId, args: &MigrateArgs) {
        let deadline = plan::deadline(&self.parameters);
        match self.protected(deadline, |vmm| vmm.begin_transfer(args)) {
            Ok(Some(Ok(calling))) => {
                self.transferring = Some(Outgoing::Calling(calling));
                self.qmp.respond(client, answers::done());
                let setup = self.migration.begin();
                setup.into_iter().for_each(|event| self.qmp.broadcast(&event));
                self.keep_up_to_date();
            }
            Ok(Some(Err(error))) => self.end_unchanged(client, Err(error)),
            // The panic was reported.
            Ok(None) => {}
            Err(error) => self.end_unchanged(client, Err(answers::generic(error))),
        }
    }

    fn begin_transfer(&mut self, args: &MigrateArgs) -> Result<Calling, QmpError> {
        // Checks the form of the arguments.
        args.address()?;
        let channels = outgoing::channels(args.channels.as_deref()).map_err(answers::generic)?;
        if let Some(reason) =
            blocked_reasons(self.machine.ram(), MigMode::CprTransfer).into_iter().next()
        {
            return Err(answers::generic(Refused::Blocked(reason)));
        }
        let room = headroom::address_space(self.machine.config().cpus.into());
        let room = room.and_then(|()| headroom::descriptors(TRANSFER_FDS));
        room.map_err(answers::generic)?;
        self.machine.probe_missing_msrs();
        let deadline = plan::deadline(&self.parameters);
        let calling = Calling::start(channels, deadline, self.config.follow_symlinks);
        calling.map_err(answers::generic)
    }

    /// Does what the new process has made possible, or fails the transfer at its deadline.
    pub(super) fn poll_transfer(&mut self) {
        let Some(outgoing) = self.transferring.take() else { return };
        // A panic that ended this process would take the guest with it: it is offered to another one,
        // so that the keeper would not continue it.
        let advanced = catch_unwind(AssertUnwindSafe(|| self.advance_transfer(outgoing)));
        match advanced
            .unwrap_or_else(|panic| Err(TransferError::Panicked(said(&*panic).to_owned())))
        {
            Ok(Progress::Waiting(outgoing)) => self.transferring = Some(outgoing),
            Ok(Progress::Done(ready)) => self.hand_over(ready),
            Err(error) => self.fail_transfer(&error),
        }
    }

    fn advance_transfer(
        &mut self,
        outgoing: Outgoing,
    ) -> Result<Progress<Outgoing, Ready>, TransferError> {
        let waiting = match outgoing {
            Outgoing::Calling(calling) => match calling.progress(&Description::of(&self.config))? {
                Progress::Waiting(calling) => {
                    return Ok(Progress::Waiting(Outgoing::Calling(calling)));
                }
                Progress::Done(greeted) => {
                    let safeguard = self.safeguard.as_mut().ok_or(TransferError::Unguarded)?;
                    let page = safeguard.page_for_offer().map_err(TransferError::Page)?;
                    // A process that continues the guest must know the page before it is offered.
                    self.keep_up_to_date();
                    if self.stale {
                        return Err(TransferError::Stale);
                    }
                    fail_point!(Publish);
                    greeted.offer(&self.machine, page)?
                }
            },
            Outgoing::Waiting(waiting) => waiting,
        };
        Ok(match waiting.progress()? {
            Progress::Waiting(waiting) => Progress::Waiting(Outgoing::Waiting(waiting)),
            Progress::Done(ready) => Progress::Done(ready),
        })
    }

    fn hand_over(&mut self, ready: Ready) {
        if let Err(error) = check_run_state(&self.machine) {
            drop(ready);
            return self.fail_transfer(&error);
        }
        let deadline = ready.deadline() + HANG;
        match self.protected(deadline, |vmm| vmm.hand_over_now(ready)) {
            Ok(Some(Ok(handed_over))) => self.transferred(handed_over),
            Ok(Some(Err(error))) => self.fail_transfer(&error),
            // The panic was reported.
            Ok(None) => {}
            Err(error) => self.fail_transfer(&error),
        }
    }

    fn hand_over_now(&mut self, ready: Ready) -> Result<HandedOver, TransferError> {
        let safeguard = self.safeguard.as_ref().ok_or(TransferError::Unguarded)?;
        ready.hand_over(HandoverContext {
            machine: &mut self.machine,
            qmp: &mut self.qmp,
            migration: &mut self.migration,
            safeguard,
            signals: self.signals.ends()[0],
            stopped: &mut self.stopped,
        })
    }

    /// Reports that the guest runs in another process, and gives up what is left of it here.
    fn transferred(&mut self, HandedOver { serial_moves, downtime }: HandedOver) {
        let total = self.migration.elapsed();
        let completed = self.migration.complete_with_downtime(Times { total, downtime });
        completed.into_iter().for_each(|event| self.qmp.broadcast(&event));
        // There is no guest to continue.
        self.stop_guarding();
        self.machine.give_up(serial_moves);
    }

    pub(super) fn fail_transfer(&mut self, error: &dyn std::error::Error) {
        let stopped = std::mem::take(&mut self.stopped);
        let (qmp, migration) = (&mut self.qmp, &mut self.migration);
        update::report_failure(qmp, migration, error.to_string(), stopped);
        self.conclude();
    }

    /// Cancels a transfer whose guest still runs here, if there is one.
    pub(super) fn cancel_transfer(&mut self) {
        let Some(outgoing) = self.transferring.take() else { return };
        outgoing.cancel();
        self.report_cancelled();
    }

    /// Reports a migration as cancelled.
    pub(super) fn report_cancelled(&mut self) {
        for status in [MigrationStatus::Cancelling, MigrationStatus::Cancelled] {
            let event = self.migration.advance(status);
            event.into_iter().for_each(|event| self.qmp.broadcast(&event));
        }
        self.conclude();
    }

    /// Returns the descriptor that the transfer waits for, and for how long.
    pub(super) fn transfer_awaits(&self) -> Option<(BorrowedFd<'_>, Duration)> {
        let outgoing = self.transferring.as_ref()?;
        Some((outgoing.fd(), outgoing.time_left()))
    }

    /// Refuses a command that needs the guest while this process does not have it.
    pub(super) fn needs_guest(&self) -> Result<(), QmpError> {
        match self.machine.run_state() {
            RunState::Inmigrate => {
                Err(QmpError::generic("Guest is waiting for an incoming migration"))
            }
            RunState::Postmigrate => Err(answers::generic(Refused::gone(&self.machine))),
            _ => Ok(()),
        }
    }
}
