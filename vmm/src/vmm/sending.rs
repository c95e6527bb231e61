//! Carries out `migrate` in mode `normal`: the glue between QMP, the main loop, and the copy.

use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use cpr_qmp::address::MigrationAddress;
use cpr_qmp::command::MigrateArgs;
use cpr_qmp::event::EventKind;
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::{MigrationParameters, MigrationStatus};
use cpr_qmp::run_state::RunState;
use nix::poll::PollFlags;

use super::protected::{ProtectError, said};
use super::{Vmm, answers};
use crate::config::KeeperPolicy;
use crate::migration::cpr::description::Description;
use crate::migration::cpr::headroom;
use crate::migration::cpr::plan::{self, check_run_state};
use crate::migration::cpr::safeguard::Safeguard;
use crate::migration::normal::NormalError;
use crate::migration::normal::handover::{CONFIRMATION, SendContext, Sent};
use crate::migration::normal::outgoing::{Copying, Limits, Outgoing, Step};
use crate::migration::status::Times;
use crate::migration::transfer::outgoing::Progress;
use crate::qmp::ConnectionId;

/// QEMU's default of `max-bandwidth`, in bytes per second.
pub(super) const MAX_BANDWIDTH: u64 = 128 << 20;
/// QEMU's default of `downtime-limit`, in milliseconds.
pub(super) const DOWNTIME_LIMIT: u64 = 300;
/// The longest `downtime-limit`, in milliseconds, as in QEMU.
const MAX_DOWNTIME: u64 = 2_000_000;
/// How long after its deadline the end of a migration counts as hanging: each of its waits has that
/// deadline. Less than the keeper's grace.
const HANG: Duration = Duration::from_secs(1);
/// The descriptors that a migration opens.
const NORMAL_FDS: usize = 8;

/// Checks the parameters of this mode.
pub(super) fn check_parameters(new: &MigrationParameters) -> Result<(), QmpError> {
    match new.downtime_limit {
        Some(limit) if limit > MAX_DOWNTIME => Err(QmpError::generic(format!(
            "Parameter 'downtime_limit' expects an integer in the range of 0 to {MAX_DOWNTIME} ms"
        ))),
        _ => Ok(()),
    }
}

impl Vmm {
    /// Handles `migrate` in mode `normal`. It is answered at once; the guest runs on while its RAM
    /// is copied.
    pub(super) fn send_guest(&mut self, client: ConnectionId, args: &MigrateArgs) {
        let deadline = plan::deadline(&self.parameters);
        let address = match args.address() {
            Ok(address) => address,
            Err(error) => return self.end_unchanged(client, Err(error)),
        };
        match self.shielded(deadline, |vmm| vmm.begin_sending(&address)) {
            Ok(Some(Ok(outgoing))) => {
                self.sending = Some(outgoing);
                self.qmp.respond(client, answers::done());
                let setup = self.migration.begin();
                setup.into_iter().for_each(|event| self.qmp.broadcast(&event));
                self.keep_up_to_date();
            }
            Ok(Some(Err(error))) => self.end_unchanged(client, Err(answers::generic(error))),
            // The panic was reported.
            Ok(None) => {}
            Err(error) => self.end_unchanged(client, Err(answers::generic(error))),
        }
    }

    fn begin_sending(&mut self, address: &MigrationAddress) -> Result<Outgoing, NormalError> {
        headroom::address_space(self.machine.config().cpus.into())?;
        headroom::descriptors(NORMAL_FDS)?;
        self.machine.probe_missing_msrs();
        let (deadline, limits) = (plan::deadline(&self.parameters), self.limits());
        Outgoing::start(address, &self.machine, deadline, self.config.follow_symlinks, limits)
    }

    fn limits(&self) -> Limits {
        let downtime = self.parameters.downtime_limit.unwrap_or(DOWNTIME_LIMIT);
        Limits {
            bandwidth: self.parameters.max_bandwidth.unwrap_or(MAX_BANDWIDTH),
            downtime: Duration::from_millis(downtime),
        }
    }

    /// Applies parameters that were set meanwhile.
    pub(super) fn limit_sending(&self) {
        if let Some(outgoing) = &self.sending {
            outgoing.set_limits(self.limits());
        }
    }

    /// Does what has become possible, and ends the migration once the rest of RAM is small.
    pub(super) fn poll_sending(&mut self) {
        let Some(outgoing) = self.sending.take() else { return };
        let (own, limits) = (Description::of(&self.config), self.limits());
        let mut steps = Vec::new();
        let advanced = catch_unwind(AssertUnwindSafe(|| {
            outgoing.progress(&self.machine, &own, limits, &mut |step| steps.push(step))
        }));
        for step in steps {
            let event = match step {
                Step::Active => {
                    self.migration.set_up();
                    self.migration.advance(MigrationStatus::Active)
                }
                Step::Pass(pass) => {
                    self.migration.events().then(|| EventKind::MigrationPass { pass }.now())
                }
            };
            event.into_iter().for_each(|event| self.qmp.broadcast(&event));
        }
        match advanced.unwrap_or_else(|panic| Err(NormalError::Panicked(said(&*panic).to_owned())))
        {
            Ok(Progress::Waiting(outgoing)) => {
                if let Some((ram, expected)) = outgoing.stats() {
                    self.migration.set_ram(ram, expected);
                }
                self.sending = Some(outgoing);
            }
            Ok(Progress::Done(copying)) => self.complete_sending(*copying),
            Err(error) => self.fail_sending(&error),
        }
    }

    fn complete_sending(&mut self, copying: Copying) {
        if let Err(error) = check_run_state(&self.machine) {
            return self.fail_sending(&error);
        }
        let deadline = copying.deadline() + CONFIRMATION + HANG;
        match self.shielded(deadline, |vmm| vmm.complete_now(copying)) {
            Ok(Some(Ok(sent))) => self.guest_is_sent(sent),
            Ok(Some(Err(error))) => self.fail_sending(&error),
            // The panic was reported.
            Ok(None) if self.sent => self.stop_guarding(),
            Ok(None) => self.machine.forget_dirty_pages(),
            Err(error) => self.fail_sending(&error),
        }
    }

    /// Runs a part of a migration as [`Vmm::protected`] does. Private RAM would not survive the
    /// execution of another program, so its guest is only protected from panics.
    fn shielded<T>(
        &mut self,
        deadline: Duration,
        part: impl FnOnce(&mut Self) -> Result<T, NormalError>,
    ) -> Result<Option<Result<T, NormalError>>, ProtectError> {
        if self.machine.ram().fd().is_some() {
            return self.protected(deadline, part);
        }
        self.stopped = false;
        // A keeper, with `--keeper on`, could only end this process.
        if self.safeguard.as_ref().is_none_or(|safeguard| safeguard.keeper_pid() != 0) {
            self.stop_guarding();
            self.safeguard = Some(Safeguard::start(false, None)?);
        }
        let result = catch_unwind(AssertUnwindSafe(|| part(self)));
        let panicked = |panic: Box<_>| Err(NormalError::Panicked(said(&*panic).to_owned()));
        Ok(Some(result.unwrap_or_else(panicked)))
    }

    fn complete_now(&mut self, copying: Copying) -> Result<Sent, NormalError> {
        let page = self.safeguard.as_mut().ok_or(NormalError::Unguarded)?.page_for_offer();
        let page = page.map_err(NormalError::Page)?;
        // A process that continues the guest must know the page.
        self.keep_up_to_date();
        if self.stale {
            return Err(NormalError::Stale);
        }
        fail_point!(Publish);
        let safeguard = self.safeguard.as_ref().ok_or(NormalError::Unguarded)?;
        copying.hand_over(SendContext {
            machine: &mut self.machine,
            qmp: &mut self.qmp,
            migration: &mut self.migration,
            safeguard,
            page,
            signals: self.signals.ends()[0],
            stopped: &mut self.stopped,
            given_up: &mut self.sent,
        })
    }

    /// Reports that the guest was given up. It stays, in case it is to continue here.
    fn guest_is_sent(&mut self, Sent { downtime, ram, unconfirmed }: Sent) {
        let total = self.migration.elapsed();
        self.migration.set_ram(ram, None);
        self.machine.forget_dirty_pages();
        let over = match unconfirmed {
            None => self.migration.complete(Some(Times { total, downtime })),
            Some(error) => self.migration.fail(NormalError::Unconfirmed(error).to_string()),
        };
        over.into_iter().for_each(|event| self.qmp.broadcast(&event));
        self.sent = true;
        self.stopped = false;
        // The keeper must not continue the guest, and its commit point is used up.
        self.stop_guarding();
    }

    fn fail_sending(&mut self, error: &dyn std::error::Error) {
        self.machine.forget_dirty_pages();
        // As every failure is reported.
        self.fail_transfer(error);
    }

    /// Cancels a migration whose guest still runs here, if there is one.
    pub(super) fn cancel_sending(&mut self) {
        let Some(mut outgoing) = self.sending.take() else { return };
        outgoing.refuse("the migration was cancelled");
        drop(outgoing);
        self.machine.forget_dirty_pages();
        self.report_cancelled();
    }

    /// Continues a guest that was sent away, before it changes in any way: an operator knows that it
    /// does not run elsewhere.
    pub(super) fn take_back_sent(&mut self) {
        if !std::mem::take(&mut self.sent) {
            return;
        }
        self.machine.set_run_state(RunState::Paused);
        self.machine.connect_irqfd();
        if self.config.keeper == KeeperPolicy::On {
            self.guard_again();
        }
    }

    /// Returns the descriptor that the migration waits for, for what, and for how long.
    pub(super) fn sending_awaits(&self) -> Option<(BorrowedFd<'_>, PollFlags, Option<Duration>)> {
        Some(self.sending.as_ref()?.awaits())
    }
}
