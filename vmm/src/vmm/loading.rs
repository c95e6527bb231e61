//! Loads a guest with its RAM: from another process, or from a file.

use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use cpr_qmp::address::MigrationAddress;
use cpr_qmp::event::EventKind;
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::{RunState, ShutdownCause};
use serde_json::Value;

use super::protected::said;
use super::{FAILURE, Vmm, answers};
use crate::config::{KeeperPolicy, PeerAddress};
use crate::devices::serial::SerialHost;
use crate::logging;
use crate::memory::PageKind;
use crate::migration::channel;
use crate::migration::cpr::description::Description;
use crate::migration::cpr::monotonic::monotonic_ns;
use crate::migration::normal::incoming::{Listening, Received, Stage};
use crate::migration::normal::on_demand::Filling;
use crate::migration::normal::section::NormalSection;
use crate::migration::normal::snapshot::Snapshot;
use crate::migration::normal::{NormalLoadError, PeerError};
use crate::migration::transfer::outgoing::Progress;
use crate::state::SavedState;

/// A process that waits for a guest with its RAM.
pub(super) struct Loading {
    listening: Listening,
    stage: Stage,
}

impl Vmm {
    /// Waits for a process that connects to `address`.
    pub(super) fn listen_for_guest(&mut self, address: PeerAddress) -> Result<(), NormalLoadError> {
        let listening = Listening::start(address)?;
        self.loading = Some(Loading { listening, stage: Stage::Listening });
        Ok(())
    }

    /// Handles `migrate-incoming`; a failure ends the VMM if `exit_on_error` says so, or if nothing
    /// else can be tried.
    pub(super) fn load_from(
        &mut self,
        address: &MigrationAddress,
        exit_on_error: bool,
    ) -> Result<Value, QmpError> {
        let loaded = match address {
            MigrationAddress::File(_) => channel::file_path(address)
                .map_err(NormalLoadError::from)
                .and_then(|path| self.load_snapshot(&open(&path)?)),
            other => PeerAddress::of(other)
                .map_err(|error| NormalLoadError::from(PeerError::from(error)))
                .and_then(|peer| self.listen_for_guest(peer)),
        };
        match loaded {
            Ok(()) => {
                self.awaits_ram = false;
                answers::done()
            }
            Err(error) => {
                if exit_on_error || !self.awaits_ram {
                    self.fail_loading(&error);
                } else if self.migration.under_way() {
                    let failed = self.migration.fail(error.to_string());
                    failed.into_iter().for_each(|event| self.qmp.broadcast(&event));
                }
                Err(answers::generic(error))
            }
        }
    }

    /// Does what the old process has made possible.
    pub(super) fn poll_loading(&mut self) {
        let Some(Loading { listening, stage }) = self.loading.take() else { return };
        match self.advance_loading(&listening, stage) {
            Ok(Some(stage)) => self.loading = Some(Loading { listening, stage }),
            Ok(None) => {}
            Err(error @ NormalLoadError::Unsettled(_)) => self.loaded_unsettled(&error),
            Err(error) => self.fail_loading(&error),
        }
    }

    fn advance_loading(
        &mut self,
        listening: &Listening,
        stage: Stage,
    ) -> Result<Option<Stage>, NormalLoadError> {
        Ok(Some(match stage {
            Stage::Listening => match listening.accept(&Description::of(&self.config)) {
                Ok(None) => Stage::Listening,
                Ok(Some(greeting)) => Stage::Greeting(greeting),
                Err(error @ NormalLoadError::Accept(_)) => return Err(error),
                Err(error) => peer_dropped(&error),
            },
            Stage::Greeting(greeting) => match greeting.progress(self.machine.ram()) {
                Ok(Progress::Waiting(greeting)) => Stage::Greeting(greeting),
                Ok(Progress::Done(mut receiving)) => {
                    // From here on, no state that was saved before fits a RAM file.
                    let claimed = self.machine.ram().claim_for_good();
                    claimed.inspect_err(|error| receiving.refuse(error))?;
                    let events =
                        [self.migration.begin(), self.migration.advance(MigrationStatus::Active)];
                    events.into_iter().flatten().for_each(|event| self.qmp.broadcast(&event));
                    // While RAM arrives.
                    let built = self.machine.build_ahead().map_err(NormalLoadError::from);
                    built.inspect_err(|error| receiving.refuse(error))?;
                    Stage::Receiving(receiving)
                }
                Err(error @ NormalLoadError::Wire(_)) => peer_dropped(&error),
                Err(error) => return Err(error),
            },
            Stage::Receiving(receiving) => match receiving.progress()? {
                Progress::Waiting(receiving) => Stage::Receiving(receiving),
                Progress::Done(mut received) => {
                    let loaded =
                        catch_unwind(AssertUnwindSafe(|| self.load_received(&mut received)));
                    let panicked =
                        |panic: Box<_>| Err(NormalLoadError::Panicked(said(&*panic).to_owned()));
                    let loaded = loaded.unwrap_or_else(panicked);
                    let run_state = loaded.inspect_err(|error| received.refuse(error))?;
                    // Not earlier: a panic from here on must not let the old process continue.
                    received.await_run()?;
                    self.run_loaded(run_state);
                    received.tell_running(self.machine.run_state().is_running().then(monotonic_ns));
                    self.report_resumed();
                    self.report_loaded();
                    return Ok(None);
                }
            },
        }))
    }

    fn load_received(&mut self, received: &mut Received) -> Result<RunState, NormalLoadError> {
        let state = received.state()?;
        self.load_state(state)
    }

    /// Loads the snapshot at `path`, and restores the run state.
    pub(super) fn load_snapshot(&mut self, snapshot: &Snapshot) -> Result<(), NormalLoadError> {
        let events = [self.migration.begin(), self.migration.advance(MigrationStatus::Active)];
        events.into_iter().flatten().for_each(|event| self.qmp.broadcast(&event));
        snapshot.check_ram(self.machine.ram())?;
        let state = snapshot.state()?;
        // Up to here, another file can be tried after a failure.
        self.awaits_ram = false;
        self.machine.ram().claim_for_good()?;
        self.filling = self.fill_on_demand(snapshot);
        if self.filling.is_none() {
            // A RAM file may hold something else.
            let fresh = self.config.memory.file.is_none();
            snapshot.load_ram(&self.machine.ram().view(), fresh)?;
        }
        let run_state = self.load_state(state)?;
        self.run_loaded(run_state);
        self.report_resumed();
        if self.filling.is_none() {
            self.report_loaded();
        }
        Ok(())
    }

    /// Begins to read RAM when it is needed, where that is possible.
    fn fill_on_demand(&self, snapshot: &Snapshot) -> Option<Filling> {
        // Only small pages can be filled one by one, and only where there are none yet. A keeper could
        // not continue a guest whose RAM this process was reading.
        let missing =
            self.config.memory.ram.pages == PageKind::Small && self.config.memory.file.is_none();
        if !missing || self.config.keeper == KeeperPolicy::On {
            return None;
        }
        let filling = snapshot.ram().and_then(|ram| Filling::start(ram, self.machine.ram()));
        match filling {
            Ok(filling) => {
                tracing::info!("normal_ram_on_demand");
                Some(filling)
            }
            Err(error) => {
                tracing::info!(%error, "normal_ram_is_read_first");
                None
            }
        }
    }

    /// Reports that the guest is complete, once all of its RAM has been read.
    pub(super) fn poll_filling(&mut self) {
        if self.filling.take_if(|filling| filling.is_over()).is_some() {
            self.report_loaded();
        }
    }

    /// Loads a state whose RAM is here, and returns the run state to restore.
    fn load_state(&mut self, mut state: SavedState) -> Result<RunState, NormalLoadError> {
        let section = NormalSection::take(&mut state)?;
        let mut state = self.machine.examine(state)?;
        fail_point!(Read);
        let host = SerialHost::open(&self.config.serial, None, &mut |_| None)?;
        fail_point!(Serial);
        section.adjust_tsc(&mut state);
        self.machine.restore(host, state, &mut |_| ())?;
        self.machine.msrs_were_chosen_from(section.msr_choice);
        self.machine.put_back_events(section.pending_events);
        audit_point!(self.machine, New);
        fail_point!(Commit);
        Ok(match section.run_state {
            // As in QEMU: it was started with `-S`.
            RunState::Running if self.config.paused => RunState::Paused,
            other => other,
        })
    }

    /// Runs the guest, which no other process has now. Nothing here may fail or wait.
    fn run_loaded(&mut self, run_state: RunState) {
        self.machine.connect_irqfd();
        if run_state.is_running() {
            self.machine.resume();
        } else {
            self.machine.set_run_state(run_state);
        }
        tracing::info!(?run_state, "normal_loaded");
    }

    fn report_resumed(&mut self) {
        let resumed = self.machine.run_state().is_running().then(|| EventKind::Resume.now());
        resumed.into_iter().for_each(|event| self.qmp.broadcast(&event));
    }

    fn report_loaded(&mut self) {
        let completed = self.migration.complete(None);
        completed.into_iter().for_each(|event| self.qmp.broadcast(&event));
        if self.config.keeper == KeeperPolicy::On {
            self.guard_again();
        }
    }

    /// Keeps a guest, stopped, that may run in the old process.
    fn loaded_unsettled(&mut self, error: &NormalLoadError) {
        self.run_loaded(RunState::Paused);
        logging::notice(&error);
        let failed = self.migration.fail(error.to_string());
        failed.into_iter().for_each(|event| self.qmp.broadcast(&event));
        if self.config.keeper == KeeperPolicy::On {
            self.guard_again();
        }
    }

    fn fail_loading(&mut self, error: &NormalLoadError) {
        logging::fatal(error);
        let failed = self.migration.fail(error.to_string());
        failed.into_iter().for_each(|event| self.qmp.broadcast(&event));
        self.end(FAILURE, false, ShutdownCause::HostError);
    }

    /// Returns the descriptor that is readable once RAM has been read.
    pub(super) fn filling_awaits(&self) -> Option<BorrowedFd<'_>> {
        self.filling.as_ref().map(Filling::fd)
    }

    /// Returns the descriptor that a waiting process polls, and for how long.
    pub(super) fn loading_awaits(&self) -> Option<(BorrowedFd<'_>, Option<Duration>)> {
        let Loading { listening, stage } = self.loading.as_ref()?;
        Some(stage.awaits().unwrap_or((listening.as_fd(), None)))
    }
}

/// It may not have been the old process at all: the next one may be.
fn peer_dropped(error: &NormalLoadError) -> Stage {
    tracing::warn!(%error, "normal_peer_dropped");
    Stage::Listening
}

/// Opens the snapshot at `path`.
fn open(path: &Path) -> Result<Snapshot, NormalLoadError> {
    Snapshot::open(path)?.ok_or_else(|| NormalLoadError::NoSnapshot(path.to_owned()))
}
