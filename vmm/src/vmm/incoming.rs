//! The new process's side of an update: load, resume, report.

use std::path::Path;

use cpr_qmp::event::EventKind;
use cpr_qmp::run_state::RunState;

use super::{Finishing, Vmm};
use crate::devices::serial::SerialHost;
use crate::machine::MachineError;
use crate::migration::channel::{self, ChannelError};
use crate::migration::cpr::helper::AdoptedHelper;
use crate::migration::cpr::phases::Phases;
use crate::migration::cpr::state::{CprState, monotonic_ns};

/// Everything of an update but the state itself.
pub struct AwaitedState {
    /// What the old process said.
    pub cpr: CprState,
    /// The serial port's host side, for the machine that is to come.
    pub host: SerialHost,
    /// When what was done until now.
    pub phases: Phases,
}

/// Why a saved state could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Nothing is awaited.
    #[error("no incoming migration is expected: the VMM was not started with --incoming defer")]
    NotAwaited,
    /// The channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// It is a good state, but another one.
    #[error("file:{0} holds a state that this update did not write")]
    OtherState(String),
    /// The machine.
    #[error("cannot load file:{path}: {source}")]
    Machine {
        /// The file.
        path: String,
        /// Why.
        source: MachineError,
    },
}

impl Vmm {
    /// Loads the state in `path` and makes the run state what it was.
    pub(super) fn load(&mut self, path: &Path) -> Result<(), LoadError> {
        let expected = self.awaited.as_ref().ok_or(LoadError::NotAwaited)?.cpr.channel;
        let name = path.display().to_string();
        let (state, fingerprint) = channel::read(path)?;
        if fingerprint != expected {
            return Err(LoadError::OtherState(name));
        }
        let machine = |source| LoadError::Machine { path: name.clone(), source };
        let state = self.machine.examine(state).map_err(machine)?;
        // Until here another file can be tried.
        let AwaitedState { cpr, host, mut phases } =
            self.awaited.take().ok_or(LoadError::NotAwaited)?;
        phases.done("read");
        // Before what can fail: then it ends.
        let helper = cpr.helper.and_then(AdoptedHelper::adopt);
        self.machine.restore(host, state).map_err(machine)?;
        phases.done("build");
        self.machine.put_back_events(cpr.pending_events);
        let runs = cpr.run_state.is_running();
        if runs {
            self.machine.resume();
        } else {
            self.machine.set_run_state(cpr.run_state);
        }
        phases.done("resume");
        let downtime_ns = monotonic_ns().saturating_sub(cpr.migration.paused_ns);
        // From here on nothing returns to the old binary.
        self.qmp.own_socket_file();
        self.signals.forget_previous();
        if let Some(bus) = self.machine.bus() {
            bus.serial().host_mut().own_socket_file();
        }
        tracing::info!(run_state = ?cpr.run_state, downtime_us = downtime_ns / 1000, phases = phases.since(cpr.migration.paused_ns), "cpr_state_load");
        if runs {
            self.qmp.broadcast(&EventKind::Resume.now());
        }
        if let Some(helper) = &helper {
            helper.release();
        }
        let began_ns = cpr.migration.began_ns;
        let waits = helper.is_some();
        self.finishing =
            Some(Finishing { helper, began_ns, downtime_ns: runs.then_some(downtime_ns) });
        if !waits {
            self.finish_update();
        }
        Ok(())
    }

    /// True until a state has been loaded.
    pub(super) fn awaits_state(&self) -> bool {
        self.machine.run_state() == RunState::Inmigrate
    }
}
