//! An update whose command is tried out while the guest and everything else goes on.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use cpr_qmp::command::MigrateArgs;
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::MigrationParameters;
use nix::poll::PollTimeout;

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

    pub(super) fn timeout(&self) -> PollTimeout {
        // Rounded up: a poll that ends just before the deadline would be repeated without a wait.
        let left = self.rehearsal.time_left() + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
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
        let begun = match self.stood_in_for(update::deadline(&self.parameters), None) {
            Ok(stood_in_for) => stood_in_for.act(|vmm| vmm.begin_update(client, args)),
            Err(error) => return self.qmp.respond(client, Err(commands::generic(error))),
        };
        if let Some((Some(plan), _)) = begun {
            self.answer_and_update(client, plan);
        }
    }

    /// Answers with an error, begins a rehearsal, or returns what can be carried out at once.
    fn begin_update(&mut self, client: ConnectionId, args: &MigrateArgs) -> Option<Plan> {
        let plan = match self.plan(args) {
            Ok(plan) => plan,
            Err(error) => {
                self.qmp.respond(client, Err(error));
                return None;
            }
        };
        if !wanted(&self.parameters) {
            return Some(plan);
        }
        let handed_over = update::handed_over(
            &plan,
            &self.machine,
            &self.qmp,
            self.log.as_deref(),
            self.signals.ends(),
        );
        match Rehearsal::start(plan.command(), timeout(&self.parameters), handed_over) {
            Ok(rehearsal) => {
                self.rehearsing = Some(Rehearsing { rehearsal, plan, client, cancelled: false });
            }
            Err(error) => self.refuse(client, &error),
        }
        None
    }

    fn plan(&self, args: &MigrateArgs) -> Result<Plan, QmpError> {
        if args.resume == Some(true) {
            return Err(QmpError::generic("Cannot resume if there is no paused migration"));
        }
        if self.rehearsing.is_some() {
            return Err(commands::generic(Refused::UnderWay));
        }
        let address = args.address()?;
        update::check(&self.parameters, &address, &self.machine, &self.qmp, &self.migration)
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
        let Rehearsing { rehearsal, plan, client, .. } = rehearsing;
        // Nothing of it is left when the guest stops, or when the answer is read.
        let left = rehearsal.end();
        let result = rehearsal::outcome(plan.command().name(), result, &left);
        self.leftovers.extend(left);
        match result {
            Ok(()) => match check_run_state(&self.machine) {
                Ok(()) => self.answer_and_update(client, plan.rehearsed()),
                Err(error) => self.qmp.respond(client, Err(commands::generic(error))),
            },
            Err(error) => self.refuse(client, &error),
        }
    }

    fn refuse(&mut self, client: ConnectionId, error: &RehearsalError) {
        tracing::warn!(%error, "cpr_rehearsal_refused");
        self.qmp.respond(client, Err(commands::generic(error)));
    }
}
