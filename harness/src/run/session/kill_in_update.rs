//! Kills the VMM with a signal during an update.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::check::gone::Cause;
use crate::check::handover::CONTINUED;
use crate::check::{Action, Finding, killed};
use crate::observe::poll;
use crate::observe::qmp::{Command, QmpFault, label};
use crate::run::failure::StepError;
use crate::run::session::Session;
use crate::run::session::revival::{DyingProcess, lost};
use crate::run::update::channel::Prepared as PreparedChannel;
use crate::run::update::hold::Hold;
use crate::run::verdict::Kill;
use crate::scenario::{EndSignal, Inject, KillInUpdate, KillOutcome, Migrate, Origin};

/// How often a kill that must land in an update is retried, each time closer to its beginning.
const CLOSER: u32 = 8;

/// One kill in an update.
struct KillAttempt<'a> {
    wanted: &'a KillInUpdate,
    number: u32,
    /// When to kill, in microseconds after the origin (`wanted.from`).
    moment: i64,
    /// The number of the first event of the update.
    from: usize,
    /// The ID of the `migrate` request, if it could be sent.
    asked: Option<u64>,
    at: Instant,
}

impl Session<'_> {
    /// Kills the VMM in as many updates as wanted, and checks what is left: the VM in another
    /// process, or nothing, in which case it starts another VMM. The caller checks the last one.
    pub(super) fn kill_in_update(&mut self, wanted: &KillInUpdate) -> Result<Action, StepError> {
        let ran = self.run_state.is_running();
        let (first, mut last) = (self.kills.len(), Action::Nothing);
        for number in 0..wanted.repeat {
            if number > 0 {
                self.check(&last, ran)?;
            }
            last = self.kill_once(wanted, number)?;
        }
        // The moments are random and hosts differ in speed, so retry until a kill lands.
        for nth in 0..CLOSER {
            if !wanted.must_land() || self.kills[first..].iter().any(Kill::landed) {
                return Ok(last);
            }
            self.check(&last, ran)?;
            last = self.kill_once(&wanted.closer(nth), wanted.repeat + nth)?;
        }
        match self.kills[first..].iter().any(Kill::landed) || !wanted.must_land() {
            true => Ok(last),
            false => {
                let count = self.kills.len() - first;
                let why = format!("none of {count} kills landed between the events of an update");
                Err(StepError::Checks(vec![Finding::new(killed::NAME, why)]))
            }
        }
    }

    fn kill_once(&mut self, wanted: &KillInUpdate, number: u32) -> Result<Action, StepError> {
        let ran = self.run_state.is_running();
        let moment = wanted.moment(self.case.seed, number);
        let cut = KillAttempt { wanted, number, moment, from: 0, asked: None, at: Instant::now() };
        self.evidence.timeline.say("harness", cut.name());
        let rehearsal = Some(wanted.rehearsal);
        let migrate = Migrate { command: wanted.command, rehearsal, ..Migrate::default() };
        let hold = match &wanted.at {
            None => None,
            Some(point) => {
                let hold = Hold::new(&self.work, self.tried)?;
                let inject = Inject { point: point.clone(), action: hold.action() };
                Some((hold, inject))
            }
        };
        let (command, channel) = self.prepare(&migrate, hold.as_ref().map(|(_, held)| held))?;
        self.set_parameters(&command, &migrate)?;
        if wanted.expect == KillOutcome::Revived {
            self.measure();
        }
        let (cut, dying) = self.strike_in_update(cut, &channel, hold.map(|(hold, _)| hold))?;
        if let Some(dying) = dying
            && self.follow(dying)?
        {
            return self.revived(&cut, &channel);
        }
        self.measuring = None;
        if wanted.expect == KillOutcome::Revived {
            self.may_be_gone(&cut)?;
        }
        self.await_killed(&cut)?;
        self.evidence.collect();
        self.boot_again().map_err(|error| match error {
            StepError::Environment(_) => error,
            other => cut.failed(format!("cannot start another VMM in its place: {other}")),
        })?;
        if wanted.expect == KillOutcome::Gone || ran {
            return Ok(Action::Boot);
        }
        // A guest that was stopped before is stopped again.
        self.check(&Action::Boot, true)?;
        let stopped = self.stop()?;
        self.check(&stopped, true)?;
        Ok(Action::Nothing)
    }

    /// Requests the update and sends the signal to the VMM's process only: the processes that it
    /// has started must exit by themselves, or continue the VM.
    fn strike_in_update<'a>(
        &mut self,
        mut cut: KillAttempt<'a>,
        channel: &PreparedChannel,
        hold: Option<Hold>,
    ) -> Result<(KillAttempt<'a>, Option<DyingProcess>), StepError> {
        let limit = self.options.patience.update;
        let migrate = [Command::new("migrate", channel.arguments.clone())];
        let pause = Duration::from_micros(cut.moment.unsigned_abs());
        cut.from = self.qmp.event_count();
        let before = hold.is_none() && cut.moment < 0 && cut.wanted.from == Origin::Migrate;
        let mut held = None;
        if !before {
            cut.asked = self.qmp.send(&migrate)?.first().copied();
            if let Some(hold) = hold {
                held =
                    Some(hold.await_held(self.options.patience.update, || self.check_process())?);
            } else if cut.wanted.from == Origin::Setup {
                let setup = json!("setup");
                self.qmp.await_event(cut.from, "MIGRATION(setup)", limit, |event| {
                    event.event == "MIGRATION"
                        && event.data.as_ref().and_then(|data| data.get("status")) == Some(&setup)
                })?;
            }
            if held.is_none() {
                // Waits for no condition: only the random time must pass.
                poll::during(pause, || None::<()>);
            }
        }
        cut.at = Instant::now();
        let dying = match cut.wanted.expect {
            KillOutcome::Revived => Some(self.kill_process(cut.from, true)?),
            KillOutcome::Gone => {
                let pid = self.vm.pid();
                kill(Pid::from_raw(pid), number(cut.wanted.signal))
                    .map_err(|errno| cut.failed(format!("cannot kill process {pid}: {errno}")))?;
                None
            }
        };
        drop(held);
        if before {
            poll::during(pause, || None::<()>);
            // The request may arrive or not.
            cut.asked = self.qmp.send(&migrate).ok().and_then(|ids| ids.first().copied());
        }
        Ok((cut, dying))
    }

    /// Handles a VM that has survived: waits for the answer to the request, and records what the
    /// update did.
    fn revived(
        &mut self,
        cut: &KillAttempt<'_>,
        channel: &PreparedChannel,
    ) -> Result<Action, StepError> {
        if let Some(asked) = cut.asked {
            match self.qmp.answer("migrate", asked) {
                Ok(_) | Err(QmpFault::Refused { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        let told = self.labels_of(cut);
        let last = told.iter().take_while(|label| *label != CONTINUED).last().cloned();
        if last.as_deref() == Some("MIGRATION(completed)") {
            self.note_update(channel.state.clone());
        }
        self.note_kill(cut, last, true);
        Ok(Action::Killed { in_update: true })
    }

    /// Checks that the kill came before or after the update: only then may the VM be lost.
    fn may_be_gone(&self, cut: &KillAttempt<'_>) -> Result<(), StepError> {
        let told = self.labels_of(cut);
        let has = |name: &str| told.iter().any(|label| label == name);
        if !has("MIGRATION(setup)") || has("MIGRATION(completed)") {
            return Ok(());
        }
        Err(lost(
            self.vm.pid(),
            &format!("by {} after the events [{}]", cut.name(), told.join(" ")),
        ))
    }

    /// Waits until nothing of the VMM is left.
    fn await_killed(&mut self, cut: &KillAttempt<'_>) -> Result<(), StepError> {
        let limit = self.options.patience.end;
        let (signal, pid) = (cut.wanted.signal, self.vm.pid());
        let name = signal.name();
        let Some(ended) = self.vm.await_end(limit) else {
            return Err(cut.failed(format!("process {pid} still runs {limit:?} after {name}")));
        };
        if !signal.asks() {
            // Checked first: a leftover process may hold the connection open.
            killed::check(&self.killed(name)).map_err(|why| cut.failed(why))?;
        }
        self.qmp.await_end(limit).map_err(|e| cut.failed(e.to_string()))?;
        if signal.asks() {
            self.check_gone(ended, Cause::Signal).map_err(|error| match error {
                StepError::Checks(findings) => cut.failed(told(&findings)),
                other => other,
            })?;
        } else {
            self.check_conversation()?;
        }
        let mut labels = self.labels_of(cut);
        labels.retain(|label| label != "SHUTDOWN");
        self.note_kill(cut, labels.pop(), false);
        Ok(())
    }

    fn note_kill(&mut self, cut: &KillAttempt<'_>, last_event: Option<String>, revived: bool) {
        let (gone, name) = (cut.at.elapsed(), cut.wanted.signal.name());
        let heard = last_event.as_deref().unwrap_or("none");
        let what = if revived { "the VM continues" } else { "nothing is left" };
        let text = format!("{what} {gone:?} after {name}; last event of the update: {heard}");
        self.evidence.timeline.say("harness", text);
        self.kills.push(Kill { moment_us: cut.moment, last_event, gone, revived });
    }

    fn labels_of(&self, cut: &KillAttempt<'_>) -> Vec<String> {
        self.qmp.events_from(cut.from).iter().map(|arrived| label(&arrived.event)).collect()
    }
}

impl KillAttempt<'_> {
    fn name(&self) -> String {
        let Self { wanted, number, moment, .. } = self;
        let from = match wanted.from {
            Origin::Migrate => "migrate",
            Origin::Setup => "MIGRATION(setup)",
        };
        let name = format!("{} {} of {}", wanted.signal.name(), number + 1, wanted.repeat);
        match &wanted.at {
            Some(point) => format!("{name}, held at {point}"),
            None => format!("{name}, {moment} us after {from}"),
        }
    }

    fn failed(&self, message: String) -> StepError {
        let message = format!("{}: {message}", self.name());
        StepError::Checks(vec![Finding::new(killed::NAME, message)])
    }
}

/// Returns the signal as the kernel numbers it.
pub(super) fn number(signal: EndSignal) -> Signal {
    match signal {
        EndSignal::Sigkill => Signal::SIGKILL,
        EndSignal::Sigterm => Signal::SIGTERM,
        EndSignal::Sigint => Signal::SIGINT,
        EndSignal::Sighup => Signal::SIGHUP,
    }
}

fn told(findings: &[Finding]) -> String {
    findings.iter().map(|f| f.message.as_str()).collect::<Vec<_>>().join("; ")
}
