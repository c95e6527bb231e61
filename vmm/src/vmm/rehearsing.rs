//! Rehearses the command of an update while the guest keeps running and clients are served.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use cpr_qmp::command::MigrateArgs;
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::MigrationParameters;

use super::{Vmm, answers};
use crate::machine::SECTIONS;
use crate::migration::cpr::description::Description;
use crate::migration::cpr::plan::{self, Plan, Refused, check_run_state};
use crate::migration::cpr::rehearsal::{self, Rehearsal, RehearsalError};
use crate::migration::cpr::update::handed_over;
use crate::qmp::ConnectionId;
use crate::state::Formats;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// A rehearsal in progress, and the update that follows if it succeeds.
pub struct Rehearsing {
    rehearsal: Rehearsal,
    plan: Plan,
    client: ConnectionId,
    cancelled: bool,
}

impl Rehearsing {
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.rehearsal.fds()
    }

    pub(super) fn time_left(&self) -> Duration {
        self.rehearsal.time_left()
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.rehearsal.elapsed()
    }
}

/// Returns whether the parameters ask for a rehearsal.
pub(super) fn wanted(parameters: &MigrationParameters) -> bool {
    parameters.x_cpr_exec_rehearsal.unwrap_or(true)
}

/// Returns the time limit of a rehearsal.
pub(super) fn timeout(parameters: &MigrationParameters) -> Duration {
    parameters.x_cpr_exec_rehearsal_timeout.map_or(DEFAULT_TIMEOUT, Duration::from_millis)
}

impl Vmm {
    /// Handles `migrate`: checks it, then begins a rehearsal or the update.
    pub(super) fn migrate_safely(&mut self, client: ConnectionId, args: &MigrateArgs) {
        self.begin_protected(client, |vmm| vmm.begin_update(client, args));
    }

    /// Begins a rehearsal, or returns the plan of an update that can start at once.
    fn begin_update(
        &mut self,
        client: ConnectionId,
        args: &MigrateArgs,
    ) -> Result<Option<Plan>, QmpError> {
        let plan = self.plan(args)?;
        self.machine.probe_missing_msrs();
        // Before the rehearsal, too: it would be in vain.
        plan.check_downtime(&self.machine, &self.migration).map_err(answers::generic)?;
        if !wanted(&self.parameters) {
            return Ok(Some(plan));
        }
        let handed_over = handed_over(&plan, &self.view(), self.safeguard.as_ref());
        let rehearsal = Rehearsal::start(plan.command(), timeout(&self.parameters), handed_over);
        let rehearsal = rehearsal.map_err(|error| refused(&error))?;
        self.rehearsing = Some(Rehearsing { rehearsal, plan, client, cancelled: false });
        // The client gets its answer when the rehearsal is over, and may cancel it before.
        self.qmp.look_ahead(client);
        Ok(None)
    }

    /// Checks that nothing is in progress that rules out an update.
    pub(super) fn check_idle(&self, args: &MigrateArgs) -> Result<(), QmpError> {
        if args.resume == Some(true) {
            return Err(QmpError::generic("Cannot resume if there is no paused migration"));
        }
        check_run_state(&self.machine).map_err(answers::generic)?;
        if self.rehearsing.is_some() || self.migration.under_way() {
            return Err(answers::generic(Refused::UnderWay));
        }
        if !self.dumps.is_empty() {
            return Err(answers::generic(Refused::Dump));
        }
        Ok(())
    }

    fn plan(&self, args: &MigrateArgs) -> Result<Plan, QmpError> {
        let address = args.address()?;
        let follow = self.config.follow_symlinks;
        let (machine, qmp, migration) = (&self.machine, &self.qmp, &self.migration);
        plan::check(&self.parameters, &address, machine, qmp, migration, follow)
            .map_err(answers::generic)
    }

    /// Cancels the rehearsal, if any; the answer to `migrate` says so.
    pub(super) fn cancel_rehearsal(&mut self) {
        if let Some(rehearsing) = &mut self.rehearsing {
            rehearsing.cancelled = true;
            self.poll_rehearsal();
        }
    }

    /// Once the rehearsal has ended, carries out or refuses the update.
    pub(super) fn poll_rehearsal(&mut self) {
        let Some(mut rehearsing) = self.rehearsing.take() else { return };
        rehearsing.cancelled |= self.qmp.wants_to_cancel(rehearsing.client);
        let result = match rehearsing.cancelled {
            true => Some(Err(RehearsalError::Cancelled)),
            false => rehearsing.rehearsal.progress(),
        };
        // Refuse a different machine at once; the rest of its rehearsal does not matter.
        let own = Description::of(&self.config);
        let channel = rehearsing.plan.channel();
        let too_old = |new: &Description| {
            self.machine.check_formats(&own.formats(new).ok()?).err().map(|why| why.to_string())
        };
        let differs = rehearsing
            .rehearsal
            .description()
            .and_then(|new| own.difference(new, channel).or_else(|| too_old(new)));
        let Some(result) = differs.map(RehearsalError::Differs).map(Err).or(result) else {
            self.rehearsing = Some(rehearsing);
            return;
        };
        let new = rehearsing.rehearsal.description();
        let commits = new.is_some_and(|new| new.commit_point);
        let formats = new.and_then(|new| own.formats(new).ok());
        let formats = formats.unwrap_or_else(|| Formats::for_unknown_reader(&SECTIONS));
        let Rehearsing { rehearsal, plan, client, .. } = rehearsing;
        let took = rehearsal.elapsed();
        // The rehearsal is gone before the guest stops or the answer is read.
        let left = rehearsal.end();
        let result = rehearsal::outcome(plan.command().name(), result, &left);
        self.leftovers.extend(left);
        match result {
            Ok(()) => {
                let plan = plan.rehearsed(commits, formats, took);
                let checked = check_run_state(&self.machine)
                    .and_then(|()| plan.check_downtime(&self.machine, &self.migration));
                match checked {
                    Ok(()) => self.answer_and_update(client, plan),
                    Err(error) => self.end_unchanged(client, Err(answers::generic(error))),
                }
            }
            Err(error) => self.end_unchanged(client, Err(refused(&error))),
        }
    }
}

fn refused(error: &RehearsalError) -> QmpError {
    tracing::warn!(%error, "cpr_rehearsal_refused");
    answers::generic(error)
}
