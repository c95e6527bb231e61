//! Takes over the guest that another process transfers (`--incoming` with a cpr channel).

use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

use cpr_qmp::event::EventKind;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::{RunState, ShutdownCause};

use super::protected::said;
use super::{FAILURE, Vmm};
use crate::config::{Config, KeeperPolicy, TransferChannels};
use crate::devices::serial::SerialHost;
use crate::keeper::commit::{CommitPage, TakeOver};
use crate::logging;
use crate::machine::Machine;
use crate::machine::order::FIRST_WITH_STATE;
use crate::memory::RamBlock;
use crate::migration::cpr::description::Description;
use crate::migration::cpr::monotonic::monotonic_ns;
use crate::migration::cpr::phases::Phases;
use crate::migration::cpr::safeguard::{Predecessor, Safeguard};
use crate::migration::cpr::update::signal_pending;
use crate::migration::transfer::incoming::{Built, Listening, Offering, Stage};
use crate::migration::transfer::message::Handover;
use crate::migration::transfer::outgoing::Progress;
use crate::migration::transfer::{ReceiveError, ReceivedFds, WireError};

/// A process that waits for a guest.
pub struct Receiving {
    listening: Listening,
    stage: Stage,
}

impl Receiving {
    /// Waits for a process that connects.
    pub fn new(listening: Listening) -> Self {
        Self { listening, stage: Stage::Listening }
    }
}

impl Vmm {
    /// Does what the old process has made possible.
    pub(super) fn poll_receiving(&mut self) {
        let Some(Receiving { listening, stage }) = self.receiving.take() else { return };
        let stage = match stage {
            Stage::Listening => self.accept_transfer(&listening),
            Stage::Greeting(greeting) => match greeting.progress() {
                Ok(Progress::Waiting(greeting)) => Ok(Stage::Greeting(greeting)),
                Ok(Progress::Done(offering)) => self.build_for(offering),
                Err(error @ WireError::Refused(_)) => Err(error.into()),
                // It may not have been the old process at all: the next one may be.
                Err(error) => {
                    tracing::warn!(%error, "transfer_peer_dropped");
                    Ok(Stage::Listening)
                }
            },
            Stage::Built(mut built) => match built.handover() {
                Ok(None) => Ok(Stage::Built(built)),
                Ok(Some((handover, fds))) => {
                    let guest_is_elsewhere = || !built.is_claimed();
                    let taken = self.caught(guest_is_elsewhere, |vmm| {
                        vmm.take_guest(&listening, &built, *handover, fds)
                    });
                    match taken {
                        Ok(resumed_ns) => return self.taken(listening, &mut built, resumed_ns),
                        Err(error) => {
                            built.link.refuse(&error);
                            Err(error)
                        }
                    }
                }
                Err(error) => {
                    built.link.refuse(&error);
                    Err(error.into())
                }
            },
        };
        match stage {
            Ok(stage) => self.receiving = Some(Receiving { listening, stage }),
            Err(error) => self.fail_receiving(&error),
        }
    }

    fn accept_transfer(&mut self, listening: &Listening) -> Result<Stage, ReceiveError> {
        match listening.accept(&Description::of(&self.config)) {
            Ok(None) => Ok(Stage::Listening),
            Ok(Some(greeting)) => Ok(Stage::Greeting(greeting)),
            Err(error @ ReceiveError::Accept(_)) => Err(error),
            Err(error) => {
                tracing::warn!(%error, "transfer_peer_dropped");
                Ok(Stage::Listening)
            }
        }
    }

    /// Builds the machine for the guest that is offered, which still runs in the old process.
    fn build_for(&mut self, mut offering: Offering) -> Result<Stage, ReceiveError> {
        let setup = self.migration.begin();
        setup.into_iter().for_each(|event| self.qmp.broadcast(&event));
        match self.caught(|| true, |vmm| vmm.build(&mut offering)) {
            Ok(page) => Ok(Stage::Built(Box::new(offering.built(page)?))),
            Err(error) => {
                offering.link.refuse(&error);
                Err(error)
            }
        }
    }

    /// Runs `part`. A panic in it is an error while the guest is elsewhere; after that, the keeper
    /// continues the guest.
    fn caught<T>(
        &mut self,
        guest_is_elsewhere: impl FnOnce() -> bool,
        part: impl FnOnce(&mut Self) -> Result<T, ReceiveError>,
    ) -> Result<T, ReceiveError> {
        catch_unwind(AssertUnwindSafe(|| part(self))).unwrap_or_else(|panic| {
            match guest_is_elsewhere() {
                true => Err(ReceiveError::Panicked(said(&*panic).to_owned())),
                false => resume_unwind(panic),
            }
        })
    }

    fn build(&mut self, offering: &mut Offering) -> Result<Arc<CommitPage>, ReceiveError> {
        let parts = offering.adopt(self.config.memory.ram)?;
        fail_point!(Ram);
        self.machine.adopt(parts.ram, parts.image);
        fail_point!(Machine);
        self.machine.build_ahead()?;
        if self.config.keeper != KeeperPolicy::Off {
            let take_over = Some(TakeOver::by_transfer(parts.page.point().clone()));
            let predecessor = Predecessor { record: None, take_over };
            match Safeguard::start(true, Some(predecessor)) {
                Ok(safeguard) => self.safeguard = Some(safeguard),
                Err(error) => tracing::warn!(%error, "cpr_keeper_missing"),
            }
        }
        Ok(parts.page)
    }

    /// Loads the state and claims the guest, and returns when its vCPUs ran.
    fn take_guest(
        &mut self,
        listening: &Listening,
        built: &Built,
        handover: Handover,
        mut fds: ReceivedFds,
    ) -> Result<Option<u64>, ReceiveError> {
        let mut phases = Phases::outgoing();
        phases.stamp("handover");
        let until = built.deadline();
        let active = self.migration.advance(MigrationStatus::Active);
        active.into_iter().for_each(|event| self.qmp.broadcast(&event));
        let state = listening.read_state(&handover, until)?;
        let state = self.machine.examine(state)?;
        phases.stamp("read");
        fail_point!(Read);
        let listener = handover.serial_listener.as_ref();
        let host = SerialHost::open(&self.config.serial, listener, &mut |name| fds.take(name))?;
        fail_point!(Serial);
        let mut before = |step| {
            if step == FIRST_WITH_STATE {
                phases.stamp("created");
            }
        };
        self.machine.restore(host, state, &mut before)?;
        self.machine.msrs_were_chosen_from(built.msr_choice);
        self.machine.put_back_events(handover.pending_events);
        phases.stamp("build");
        let run_state = match handover.run_state {
            // As in QEMU: it was started with `-S`.
            RunState::Running if self.config.paused => RunState::Paused,
            other => other,
        };
        self.run_state_to_be = Some(run_state);
        let runs = run_state.is_running();
        self.keep_up_to_date();
        if self.stale {
            return Err(ReceiveError::Stale);
        }
        if let Some(safeguard) = &self.safeguard {
            safeguard.set_told_stopped(runs);
        }
        audit_point!(self.machine, New);
        fail_point!(Commit);
        // It would end this process, and the guest with it, as soon as it has the guest.
        if signal_pending(self.signals.ends()[0]) {
            return Err(ReceiveError::AskedToEnd);
        }
        built.claim()?;
        // The lock came with the descriptor; only a rescue that came too early could hold it.
        if let Err(error) = self.machine.ram().claim() {
            tracing::error!(%error, "cpr_ram_not_claimed");
        }
        self.machine.connect_irqfd();
        if runs {
            self.machine.resume();
        } else {
            self.machine.set_run_state(run_state);
        }
        self.run_state_to_be = None;
        let resumed_ns = monotonic_ns();
        phases.stamp("resume");
        let downtime_us = resumed_ns.saturating_sub(handover.paused_ns) / 1000;
        let phases = phases.since(handover.paused_ns);
        tracing::info!(?run_state, downtime_us, phases, "transfer_taken");
        Ok(runs.then_some(resumed_ns))
    }

    /// Reports that the guest runs here.
    fn taken(&mut self, listening: Listening, built: &mut Built, resumed_ns: Option<u64>) {
        built.link.tell_running(resumed_ns);
        if resumed_ns.is_some() {
            self.qmp.broadcast(&EventKind::Resume.now());
        }
        if let Some(safeguard) = &self.safeguard {
            safeguard.set_told_stopped(false);
        }
        let completed = self.migration.complete(None);
        completed.into_iter().for_each(|event| self.qmp.broadcast(&event));
        self.own_files();
        drop(listening);
        self.conclude();
    }

    fn fail_receiving(&mut self, error: &ReceiveError) {
        logging::fatal(&format_args!("cannot take over the guest: {error}"));
        let failed = self.migration.advance(MigrationStatus::Failed);
        failed.into_iter().for_each(|event| self.qmp.broadcast(&event));
        self.end(FAILURE, false, ShutdownCause::HostError);
    }

    /// Returns the descriptor that a waiting process polls, and for how long.
    pub(super) fn receiving_awaits(&self) -> Option<(BorrowedFd<'_>, Option<Duration>)> {
        let receiving = self.receiving.as_ref()?;
        Some(match receiving.stage.awaits() {
            Some((fd, left)) => (fd, Some(left)),
            None => (receiving.listening.as_fd(), None),
        })
    }
}

/// Starts to wait for a guest: a machine without RAM, and both channels.
pub(super) fn listen(
    config: &Config,
    channels: TransferChannels,
) -> Result<(Machine, Receiving), ReceiveError> {
    let listening = Listening::start(channels, config.memory.ram)?;
    let ram = RamBlock::elsewhere(config.memory.ram);
    let mut machine = Machine::new(config.machine(), ram, None, None)?;
    machine.set_run_state(RunState::Inmigrate);
    Ok((machine, Receiving::new(listening)))
}
