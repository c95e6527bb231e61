//! An update whose command is tried out while the guest and everything else goes on.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use cpr_qmp::command::MigrateArgs;
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::MigrationParameters;

use super::{Vmm, commands};
use crate::migration::cpr::description::Description;
use crate::migration::cpr::rehearsal::{self, Rehearsal, RehearsalError};
use crate::migration::cpr::update::{self, Plan, Refused, check_run_state};
use crate::qmp::ConnectionId;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);

/// A rehearsal, and what follows if it goes well.
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

/// Whether commands are rehearsed.
pub(super) fn wanted(parameters: &MigrationParameters) -> bool {
    parameters.x_cpr_exec_rehearsal.unwrap_or(true)
}

/// For how long.
pub(super) fn timeout(parameters: &MigrationParameters) -> Duration {
    parameters.x_cpr_exec_rehearsal_timeout.map_or(DEFAULT_TIMEOUT, Duration::from_millis)
}

impl Vmm {
    /// `migrate`: checks, and begins to rehearse or to update.
    pub(super) fn migrate_safely(&mut self, client: ConnectionId, args: &MigrateArgs) {
        self.begin_protected(client, |vmm| vmm.begin_update(client, args));
    }

    /// Begins a rehearsal, or returns what can be carried out at once.
    fn begin_update(
        &mut self,
        client: ConnectionId,
        args: &MigrateArgs,
    ) -> Result<Option<Plan>, QmpError> {
        let plan = self.plan(args)?;
        self.machine.look_for_more_msrs();
        if !wanted(&self.parameters) {
            return Ok(Some(plan));
        }
        let handed_over = update::handed_over(&plan, &self.view(), self.safeguard.as_ref());
        let rehearsal = Rehearsal::start(plan.command(), timeout(&self.parameters), handed_over);
        let rehearsal = rehearsal.map_err(|error| refused(&error))?;
        self.rehearsing = Some(Rehearsing { rehearsal, plan, client, cancelled: false });
        // It is answered when the rehearsal is over, and may want to say something before.
        self.qmp.look_ahead(client);
        Ok(None)
    }

    fn plan(&self, args: &MigrateArgs) -> Result<Plan, QmpError> {
        if args.resume == Some(true) {
            return Err(QmpError::generic("Cannot resume if there is no paused migration"));
        }
        if self.rehearsing.is_some() {
            return Err(commands::generic(Refused::UnderWay));
        }
        if !self.dumps.is_empty() {
            return Err(commands::generic(Refused::Dump));
        }
        let address = args.address()?;
        let follow = self.config.follow_symlinks;
        let (machine, qmp, migration) = (&self.machine, &self.qmp, &self.migration);
        update::check(&self.parameters, &address, machine, qmp, migration, follow)
            .map_err(commands::generic)
    }

    /// The answer to `migrate` says that it was called off.
    pub(super) fn cancel_rehearsal(&mut self) {
        if let Some(rehearsing) = &mut self.rehearsing {
            rehearsing.cancelled = true;
            self.look_at_rehearsal();
        }
    }

    /// Refuses the update, or carries it out, if the rehearsal has ended.
    pub(super) fn look_at_rehearsal(&mut self) {
        let Some(mut rehearsing) = self.rehearsing.take() else { return };
        rehearsing.cancelled |= self.qmp.wants_to_cancel(rehearsing.client);
        let result = match rehearsing.cancelled {
            true => Some(Err(RehearsalError::Cancelled)),
            false => rehearsing.rehearsal.progress(),
        };
        // Another machine is refused at once: what a take-over of that meets does not matter.
        let own = Description::of(&self.config);
        let channel = rehearsing.plan.channel();
        let differs =
            rehearsing.rehearsal.description().and_then(|new| own.difference(new, channel));
        let Some(result) = differs.map(RehearsalError::Differs).map(Err).or(result) else {
            self.rehearsing = Some(rehearsing);
            return;
        };
        let new = rehearsing.rehearsal.description();
        let commits = new.is_some_and(|new| new.commit_point);
        let Rehearsing { rehearsal, plan, client, .. } = rehearsing;
        // Nothing of it is left when the guest stops, or when the answer is read.
        let left = rehearsal.end();
        let result = rehearsal::outcome(plan.command().name(), result, &left);
        self.leftovers.extend(left);
        match result {
            Ok(()) => match check_run_state(&self.machine) {
                Ok(()) => self.answer_and_update(client, plan.rehearsed(commits)),
                Err(error) => self.end_unchanged(client, Err(commands::generic(error))),
            },
            Err(error) => self.end_unchanged(client, Err(refused(&error))),
        }
    }
}

fn refused(error: &RehearsalError) -> QmpError {
    tracing::warn!(%error, "cpr_rehearsal_refused");
    commands::generic(error)
}
