//! Keeping the guest whatever happens to this process: the safeguard around updates, or always.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use cpr_qmp::message::QmpError;
use serde_json::Value;

use super::{Vmm, commands};
use crate::config::KeeperPolicy;
use crate::migration::cpr::fall_back::{self, ArmError};
use crate::migration::cpr::headroom::{self, NoRoom};
use crate::migration::cpr::safeguard::{Predecessor, Safeguard, SafeguardError, View};
use crate::migration::cpr::update::{self, Plan, UpdateError, Walk};
use crate::pid_file::PidFile;
use crate::qmp::ConnectionId;

/// Why an update cannot be protected.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProtectError {
    /// There is nothing to continue from.
    #[error(transparent)]
    Safeguard(#[from] SafeguardError),
    /// There is nothing that starts it.
    #[error(transparent)]
    Arm(#[from] ArmError),
    /// The memory.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

impl Vmm {
    /// What crosses into a process that continues this VM.
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

    /// Has somebody stand ready, if nobody does. `predecessor`: see [`Safeguard::start`].
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

    /// Brings what a keeper goes by up to date, and sends what is in it then.
    pub(super) fn publish_and_send(&mut self) {
        self.keep_up_to_date();
        self.qmp.flush_published();
        // Clients may have gone with that, and their descriptors.
        self.keep_up_to_date();
    }

    /// Brings what a keeper goes by up to date.
    pub(super) fn keep_up_to_date(&mut self) {
        let published = self.publish();
        let failed = published.is_err();
        if let Err(error) = published {
            // Clients are served all the same.
            self.qmp.hold(None);
            if !self.stale {
                tracing::error!(%error, "cpr_safeguard_stale: who continues would find the VM as it was before");
            }
        }
        self.stale = failed;
    }

    /// An update is over, and what there is to say of it was said: it is sent, and then nobody stands
    /// ready any more, unless somebody always does. Not the other way round: a process that dies
    /// before clients know how the update has ended is continued.
    ///
    /// Nothing of the update is left when a client that has heard of its end gets the next answer.
    pub(super) fn conclude(&mut self) {
        self.publish_and_send();
        if self.config.keeper != KeeperPolicy::On {
            self.stop_guarding();
        } else if self.safeguard.as_ref().is_none_or(Safeguard::is_released) {
            self.guard_again();
        }
    }

    /// The keeper is of no use any more: another one takes its place.
    pub(super) fn guard_again(&mut self) {
        self.stop_guarding();
        if let Err(error) = self.guard(None) {
            self.stop_guarding();
            crate::logging::notice(&format_args!("--keeper on: nobody stands ready now: {error}"));
        }
    }

    /// Nobody stands ready any more.
    pub(super) fn stop_guarding(&mut self) {
        self.safeguard = None;
        self.qmp.hold(None);
        self.qmp.flush();
    }

    fn protect(&mut self, deadline: Duration) -> Result<fall_back::Protected, ProtectError> {
        // First: what follows allocates, and would abort.
        headroom::address_space(self.machine.config().cpus.into())?;
        self.guard(None)?;
        Ok(fall_back::protected(deadline)?)
    }

    /// Does a part of an update within `deadline`. If the main thread crashes or hangs in it, this
    /// process continues the guest in itself. `None` if it panicked, which is told.
    fn protected<T>(
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
                let said = panic.downcast_ref::<String>().map(String::as_str);
                let said = said.or(panic.downcast_ref::<&str>().copied());
                self.tell_panic(said.unwrap_or("it gave no reason"));
                Ok(None)
            }
        }
    }

    fn tell_panic(&mut self, said: &str) {
        let error = crashed(&format!("it panicked: {said}"));
        tracing::error!(%error, "update_crashed");
        self.qmp.refuse_in_flight(&QmpError::generic(&error));
        if self.migration.under_way() {
            let stopped = std::mem::take(&mut self.stopped);
            update::tell_failure(&mut self.qmp, &mut self.migration, error, stopped);
        }
        self.conclude();
    }

    /// Begins an update, or refuses it: what `begin` returns is carried out.
    pub(super) fn begin_protected(
        &mut self,
        client: ConnectionId,
        begin: impl FnOnce(&mut Self) -> Result<Option<Plan>, QmpError>,
    ) {
        let deadline = update::deadline(&self.parameters);
        match self.protected(deadline, begin) {
            Ok(Some(Ok(Some(plan)))) => self.answer_and_update(client, plan),
            // It is rehearsed now.
            Ok(Some(Ok(None))) => self.keep_up_to_date(),
            Ok(Some(Err(error))) => self.end_unchanged(client, Err(error)),
            Ok(None) => {}
            Err(error) => self.end_unchanged(client, Err(commands::generic(error))),
        }
    }

    /// Answers `migrate` when nothing of an update is left, if none is under way any more.
    pub(super) fn end_unchanged(&mut self, client: ConnectionId, result: Result<Value, QmpError>) {
        self.qmp.respond(client, result);
        if self.rehearsing.is_none() {
            self.conclude();
        }
    }

    /// The answer to `migrate` is on its way before the process is replaced.
    pub(super) fn answer_and_update(&mut self, client: ConnectionId, plan: Plan) {
        let updated = self.protected(plan.deadline(), |vmm| {
            vmm.qmp.respond(client, commands::done());
            vmm.walk(plan)
        });
        match updated {
            Ok(Some(Some(error))) => {
                let stopped = std::mem::take(&mut self.stopped);
                let (qmp, migration) = (&mut self.qmp, &mut self.migration);
                update::tell_failure(qmp, migration, error.to_string(), stopped);
                self.conclude();
            }
            Ok(_) => {}
            Err(error) => self.end_unchanged(client, Err(commands::generic(error))),
        }
    }

    /// Returns only if it failed.
    fn walk(&mut self, plan: Plan) -> Option<UpdateError> {
        let mut safeguard = self.safeguard.take()?;
        let mut walk = Walk {
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

    /// Takes the machine apart and puts it together again, as after power-on.
    pub(super) fn reset_machine(&mut self) -> Result<(), crate::machine::MachineError> {
        if let Some(safeguard) = &mut self.safeguard {
            safeguard.forget_machine();
        }
        self.machine.reset()?;
        self.keep_up_to_date();
        Ok(())
    }
}

/// What an operator reads of an update in which this VMM itself failed.
pub(super) fn crashed(why: &str) -> String {
    if why.ends_with(DEADLINE) {
        return format!(
            "the update did not finish in time, the VM keeps running: {why}; raise \
             x-cpr-exec-deadline if this host is that slow"
        );
    }
    format!("the update crashed, the VM keeps running: {why}; this is a bug in the VMM")
}

/// How the reason of a process that passed its deadline ends.
const DEADLINE: &str = "its deadline passed";
