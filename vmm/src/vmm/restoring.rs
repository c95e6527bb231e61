//! Continues a guest that an earlier process has saved (`cpr-reboot`).

use std::path::Path;

use cpr_qmp::event::EventKind;
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::{RunState, ShutdownCause};
use serde_json::Value;

use super::{FAILURE, Vmm, answers};
use crate::config::KeeperPolicy;
use crate::devices::serial::SerialHost;
use crate::logging;
use crate::migration::channel;
use crate::migration::reboot::RebootLoadError;
use crate::migration::reboot::section::RebootSection;

impl Vmm {
    /// Loads the state in the file at `path`, claims the guest, and restores its run state.
    pub(super) fn load_saved(&mut self, path: &Path) -> Result<(), RebootLoadError> {
        let (mut state, _) = channel::read(path)?;
        let section = RebootSection::take(&mut state, path)?;
        let machine = |source| RebootLoadError::Machine { path: path.to_owned(), source };
        let mut state = self.machine.examine(state).map_err(machine)?;
        section.check_ram(self.machine.ram(), path)?;
        fail_point!(Read);
        let host = SerialHost::open(&self.config.serial, None, &mut |_| None)?;
        section.adjust_tsc(&mut state);
        // Up to here, another file can be tried after a failure.
        self.awaits_saved = false;
        self.machine.restore(host, state, &mut |_| ()).map_err(machine)?;
        self.machine.msrs_were_chosen_from(section.msr_choice);
        self.machine.put_back_events(section.pending_events);
        let run_state = match section.run_state {
            // As in QEMU: it was started with `-S`.
            RunState::Running if self.config.paused => RunState::Paused,
            other => other,
        };
        let runs = run_state.is_running();
        if self.config.keeper == KeeperPolicy::On {
            self.run_state_to_be = Some(run_state);
            self.guard_again();
            self.run_state_to_be = None;
        }
        audit_point!(self.machine, New);
        fail_point!(Commit);
        // From here on, the state is stale.
        self.machine.ram().claim_for_good()?;
        self.machine.connect_irqfd();
        if runs {
            self.machine.resume();
            self.qmp.broadcast(&EventKind::Resume.now());
        } else {
            self.machine.set_run_state(run_state);
        }
        let completed = self.migration.complete(None);
        completed.into_iter().for_each(|event| self.qmp.broadcast(&event));
        tracing::info!(?run_state, "reboot_restored");
        Ok(())
    }

    /// Handles `migrate-incoming`; a failure ends the VMM if `exit_on_error` says so, or if another
    /// file cannot be tried.
    pub(super) fn load_saved_at(
        &mut self,
        path: &Path,
        exit_on_error: bool,
    ) -> Result<Value, QmpError> {
        let setup = self.migration.begin();
        setup.into_iter().for_each(|event| self.qmp.broadcast(&event));
        let active = self.migration.advance(MigrationStatus::Active);
        active.into_iter().for_each(|event| self.qmp.broadcast(&event));
        self.load_saved(path).map_err(|error| {
            let failed = self.migration.fail(error.to_string());
            failed.into_iter().for_each(|event| self.qmp.broadcast(&event));
            if exit_on_error || !self.awaits_saved {
                logging::fatal(&error);
                self.end(FAILURE, false, ShutdownCause::HostError);
            }
            answers::generic(error)
        })?;
        answers::done()
    }
}
