//! Carries out `migrate` in mode `cpr-reboot`: the glue between QMP, the main loop and the save.

use cpr_qmp::command::MigrateArgs;
use cpr_qmp::message::QmpError;
use cpr_qmp::run_state::RunState;

use super::{Vmm, answers};
use crate::config::KeeperPolicy;
use crate::memory::{RamBlock, RamError};
use crate::migration::cpr::plan;
use crate::migration::cpr::update;
use crate::migration::reboot::RebootError;
use crate::migration::reboot::outgoing::{SaveContext, SavePlan, Saved};
use crate::migration::status::Times;
use crate::qmp::ConnectionId;

/// Errors from continuing a saved guest in the process that saved it.
#[derive(Debug, thiserror::Error)]
enum TakeBackError {
    /// Another process has it.
    #[error("cannot continue the guest: another process has its RAM file")]
    InUse,
    /// Another process has run it.
    #[error("cannot continue the guest: its RAM file was modified after it was saved; use quit")]
    Modified,
    /// The RAM file is not usable.
    #[error("cannot continue the guest: {0}")]
    Ram(#[from] RamError),
}

impl Vmm {
    /// Handles `migrate` in mode `cpr-reboot`. It is answered before the guest stops; what fails
    /// after that is in `query-migrate`.
    pub(super) fn save_guest(&mut self, client: ConnectionId, args: &MigrateArgs) {
        let deadline = plan::deadline(&self.parameters);
        match self.protected(deadline, |vmm| vmm.plan_save(args)) {
            Ok(Some(Ok(plan))) => self.answer_and_save(client, plan),
            Ok(Some(Err(error))) => self.end_unchanged(client, Err(error)),
            // The panic was reported.
            Ok(None) => {}
            Err(error) => self.end_unchanged(client, Err(answers::generic(error))),
        }
    }

    fn plan_save(&self, args: &MigrateArgs) -> Result<SavePlan, QmpError> {
        let deadline = plan::deadline(&self.parameters);
        let (address, follow) = (args.address()?, self.config.follow_symlinks);
        SavePlan::check(&address, &self.machine, deadline, follow).map_err(answers::generic)
    }

    fn answer_and_save(&mut self, client: ConnectionId, plan: SavePlan) {
        let saved = self.protected(plan.deadline(), |vmm| {
            vmm.qmp.respond(client, answers::done());
            let setup = vmm.migration.begin();
            setup.into_iter().for_each(|event| vmm.qmp.broadcast(&event));
            vmm.publish_and_send();
            vmm.save_now(plan)
        });
        match saved {
            Ok(Some(Ok(saved))) => self.guest_is_saved(saved),
            Ok(Some(Err(error))) => {
                let stopped = std::mem::take(&mut self.stopped);
                let (qmp, migration) = (&mut self.qmp, &mut self.migration);
                update::report_failure(qmp, migration, error.to_string(), stopped);
                self.conclude();
            }
            // The panic was reported.
            Ok(None) => {}
            Err(error) => self.end_unchanged(client, Err(answers::generic(error))),
        }
    }

    fn save_now(&mut self, plan: SavePlan) -> Result<Saved, RebootError> {
        let safeguard = self.safeguard.as_ref().ok_or(RebootError::Unguarded)?;
        plan.save(SaveContext {
            machine: &mut self.machine,
            qmp: &mut self.qmp,
            migration: &mut self.migration,
            safeguard,
            stopped: &mut self.stopped,
        })
    }

    /// Reports that the guest is saved, and lets another process claim it.
    fn guest_is_saved(&mut self, saved: Saved) {
        let total = self.migration.elapsed();
        let times = Times { total, downtime: saved.downtime };
        let completed = self.migration.complete(Some(times));
        completed.into_iter().for_each(|event| self.qmp.broadcast(&event));
        self.saved = Some(saved);
        // In this order: without a lock, the keeper must not continue the guest, and a client that
        // knows of the end may start another process at once.
        self.safeguard = None;
        self.machine.ram().release();
        self.stop_guarding();
    }

    /// Claims a guest that this process has saved, if there is one, before it changes in any way:
    /// its state is stale then. Refused if another process has the guest, or has had it.
    pub(super) fn take_back_saved(&mut self) -> Result<(), QmpError> {
        let Some(saved) = &self.saved else { return Ok(()) };
        take_back(self.machine.ram(), saved).map_err(answers::generic)?;
        self.saved = None;
        self.machine.set_run_state(RunState::Paused);
        self.machine.connect_irqfd();
        if self.config.keeper == KeeperPolicy::On {
            self.guard_again();
        }
        Ok(())
    }
}

fn take_back(ram: &RamBlock, saved: &Saved) -> Result<(), TakeBackError> {
    match ram.lock() {
        Ok(()) => {}
        Err(RamError::InUse { .. }) => return Err(TakeBackError::InUse),
        Err(other) => return Err(other.into()),
    }
    let claimed = match ram.dated() {
        Ok(dated) if dated == saved.dated => ram.claim_for_good().map_err(TakeBackError::from),
        Ok(_) => Err(TakeBackError::Modified),
        Err(error) => Err(error.into()),
    };
    claimed.inspect_err(|_| ram.release())
}
