//! Keeps the guest alive if this process crashes or hangs, during updates or always.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use cpr_qmp::message::QmpError;
use serde_json::Value;

use super::{Vmm, answers};
use crate::config::KeeperPolicy;
use crate::migration::cpr::fall_back::{self, ArmError};
use crate::migration::cpr::headroom::{self, NoRoom};
use crate::migration::cpr::outgoing::View;
use crate::migration::cpr::plan::{self, Plan};
use crate::migration::cpr::safeguard::{Predecessor, Safeguard, SafeguardError};
use crate::migration::cpr::update::{self, UpdateContext, UpdateError};
use crate::pid_file::PidFile;
use crate::qmp::ConnectionId;

/// Reasons why an update cannot be protected.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProtectError {
    /// The safeguard could not be started.
    #[error(transparent)]
    Safeguard(#[from] SafeguardError),
    /// The triggers of a fallback could not be armed.
    #[error(transparent)]
    Arm(#[from] ArmError),
    /// There is too little address space.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

/// Returns the message of a panic.
pub(super) fn said(panic: &(dyn Any + Send)) -> &str {
    let said = panic.downcast_ref::<String>().map(String::as_str);
    said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given")
}

impl Vmm {
    /// Returns what a process that continues this VM needs.
    pub(super) fn view(&self) -> View<'_> {
        View {
            machine: &self.machine,
            run_state: self.run_state_to_be.unwrap_or(self.machine.run_state()),
            qmp: &self.qmp,
            migration: &self.migration,
            parameters: &self.parameters,
            pid_file: self.pid_file.as_ref().and_then(PidFile::path),
            log: self.log.as_deref(),
            signals: self.signals.ends(),
        }
    }

    /// Starts a safeguard, if there is none. For `predecessor` see [`Safeguard::start`].
    pub(super) fn guard(
        &mut self,
        predecessor: Option<Predecessor<'_>>,
    ) -> Result<(), SafeguardError> {
        if self.safeguard.is_none() {
            let wanted = self.config.keeper != KeeperPolicy::Off;
            self.safeguard = Some(Safeguard::start(wanted, predecessor)?);
        }
        self.publish()
    }

    fn publish(&mut self) -> Result<(), SafeguardError> {
        let Some(mut safeguard) = self.safeguard.take() else { return Ok(()) };
        let published = safeguard.publish(&self.view());
        self.safeguard = Some(safeguard);
        if let Some(generation) = published? {
            self.qmp.hold(Some(generation));
        }
        Ok(())
    }

    /// Updates the safeguard's copy of the state, and sends the output that it contains.
    pub(super) fn publish_and_send(&mut self) {
        self.keep_up_to_date();
        self.qmp.flush_published();
        // Sending may have dropped clients, and their descriptors.
        self.keep_up_to_date();
    }

    /// Updates the safeguard's copy of the state.
    pub(super) fn keep_up_to_date(&mut self) {
        let published = self.publish();
        let failed = published.is_err();
        if let Err(error) = published {
            // Keep serving clients.
            self.qmp.hold(None);
            if !self.stale {
                tracing::error!(%error, "cpr_safeguard_stale: a fallback would restore a stale state");
            }
        }
        self.stale = failed;
    }

    /// Concludes an update whose outcome is queued for the clients: sends it, then drops the
    /// safeguard unless the keeper is always on. In this order, a process that dies before clients
    /// know the outcome is continued.
    ///
    /// Nothing of the update is left when a client that knows its outcome gets its next answer.
    pub(super) fn conclude(&mut self) {
        self.publish_and_send();
        if self.config.keeper != KeeperPolicy::On {
            self.stop_guarding();
        } else if self.safeguard.as_ref().is_none_or(Safeguard::is_released) {
            self.guard_again();
        }
    }

    /// Replaces a keeper that can no longer be used.
    pub(super) fn guard_again(&mut self) {
        self.stop_guarding();
        if let Err(error) = self.guard(None) {
            self.stop_guarding();
            crate::logging::notice(&format_args!("--keeper on: cannot start a keeper: {error}"));
        }
    }

    /// Drops the safeguard.
    pub(super) fn stop_guarding(&mut self) {
        self.safeguard = None;
        self.qmp.hold(None);
        self.qmp.flush();
    }

    fn protect(&mut self, deadline: Duration) -> Result<fall_back::Protected, ProtectError> {
        // First: the steps below allocate, and would abort.
        headroom::address_space(self.machine.config().cpus.into())?;
        self.guard(None)?;
        Ok(fall_back::protected(deadline)?)
    }

    /// Runs a part of an update within `deadline`. If the main thread crashes or hangs in it, this
    /// process falls back and continues the guest itself. Returns `None` after a panic, which is
    /// reported.
    pub(super) fn protected<T>(
        &mut self,
        deadline: Duration,
        part: impl FnOnce(&mut Self) -> T,
    ) -> Result<Option<T>, ProtectError> {
        self.stopped = false;
        let protected = match self.protect(deadline) {
            Ok(protected) => protected,
            Err(error) => {
                return Err(error);
            }
        };
        let result = catch_unwind(AssertUnwindSafe(|| part(self)));
        drop(protected);
        #[cfg(feature = "failpoints")]
        crate::failpoints::relieve();
        match result {
            Ok(result) => Ok(Some(result)),
            Err(panic) => {
                self.report_panic(said(&*panic));
                Ok(None)
            }
        }
    }

    fn report_panic(&mut self, said: &str) {
        let error = crashed(&format!("it panicked: {said}"));
        tracing::error!(%error, "update_crashed");
        self.qmp.refuse_in_flight(&QmpError::generic(&error));
        if self.migration.under_way() {
            let stopped = std::mem::take(&mut self.stopped);
            update::report_failure(&mut self.qmp, &mut self.migration, error, stopped);
        }
        self.conclude();
    }

    /// Begins an update with `begin`, and carries out the plan that it returns, if any.
    pub(super) fn begin_protected(
        &mut self,
        client: ConnectionId,
        begin: impl FnOnce(&mut Self) -> Result<Option<Plan>, QmpError>,
    ) {
        let deadline = plan::deadline(&self.parameters);
        match self.protected(deadline, begin) {
            Ok(Some(Ok(Some(plan)))) => self.answer_and_update(client, plan),
            // The rehearsal has begun.
            Ok(Some(Ok(None))) => self.keep_up_to_date(),
            Ok(Some(Err(error))) => self.end_unchanged(client, Err(error)),
            Ok(None) => {}
            Err(error) => self.end_unchanged(client, Err(answers::generic(error))),
        }
    }

    /// Answers `migrate`, and concludes the update unless a rehearsal or a transfer is still
    /// running: the process to which the guest is offered competes with this keeper.
    pub(super) fn end_unchanged(&mut self, client: ConnectionId, result: Result<Value, QmpError>) {
        self.qmp.respond(client, result);
        if self.rehearsing.is_none() && self.transferring.is_none() && self.sending.is_none() {
            self.conclude();
        }
    }

    /// Answers `migrate`, then carries out the update.
    pub(super) fn answer_and_update(&mut self, client: ConnectionId, plan: Plan) {
        let updated = self.protected(plan.deadline(), |vmm| {
            vmm.qmp.respond(client, answers::done());
            vmm.walk(plan)
        });
        match updated {
            Ok(Some(Some(error))) => {
                let stopped = std::mem::take(&mut self.stopped);
                let (qmp, migration) = (&mut self.qmp, &mut self.migration);
                update::report_failure(qmp, migration, error.to_string(), stopped);
                self.conclude();
            }
            Ok(_) => {}
            Err(error) => self.end_unchanged(client, Err(answers::generic(error))),
        }
    }

    /// Carries out the update; returns only if it failed.
    fn walk(&mut self, plan: Plan) -> Option<UpdateError> {
        let mut safeguard = self.safeguard.take()?;
        let mut walk = UpdateContext {
            machine: &mut self.machine,
            qmp: &mut self.qmp,
            migration: &mut self.migration,
            log: self.log.as_deref(),
            signals: self.signals.ends(),
            parameters: &self.parameters,
            pid_file: self.pid_file.as_ref().and_then(PidFile::path),
            safeguard: &mut safeguard,
            stopped: &mut self.stopped,
        };
        let result = catch_unwind(AssertUnwindSafe(|| walk.update(plan)));
        self.safeguard = Some(safeguard);
        Some(result.unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// Tears the machine down and builds it again, as after power-on.
    pub(super) fn reset_machine(&mut self) -> Result<(), crate::machine::MachineError> {
        if let Some(safeguard) = &mut self.safeguard {
            safeguard.drop_machine();
        }
        self.machine.reset()?;
        self.keep_up_to_date();
        Ok(())
    }
}

/// Returns the error text of an update in which this VMM itself failed.
pub(super) fn crashed(why: &str) -> String {
    if why.ends_with(fall_back::DOWNTIME_PASSED) {
        return format!(
            "the update stopped the guest for too long and was undone; the VM keeps running: {why}; \
             raise it if this host is slow"
        );
    }
    if why.ends_with(fall_back::DEADLINE_PASSED) {
        return format!(
            "the update did not finish in time; the VM keeps running: {why}; raise \
             x-cpr-exec-deadline if this host is slow"
        );
    }
    format!("the update crashed; the VM keeps running: {why}; this is a bug in the VMM")
}
