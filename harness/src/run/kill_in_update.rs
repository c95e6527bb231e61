//! Cutting off updates by signals.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::failure::StepError;
use super::session::Session;
use super::verdict::Kill;
use crate::check::gone::Cause;
use crate::check::{Action, Finding, killed};
use crate::observe::poll;
use crate::observe::qmp::{Command, label};
use crate::scenario::{EndSignal, KillInUpdate, Migrate};

impl Session<'_> {
    /// Ends the VMM in an update, looks at what is left, starts one in its place; as often as
    /// wanted. The last one is for the caller to check.
    pub(super) fn kill_in_update(&mut self, wanted: &KillInUpdate) -> Result<Action, StepError> {
        for number in 0..wanted.repeat {
            if number > 0 {
                self.check(&Action::Boot, true)?;
            }
            let moment = wanted.moment(self.case.seed, number);
            let name = wanted.signal.name();
            let which = format!("{name} {} of {}", number + 1, wanted.repeat);
            let text = format!("{which}: {moment} us after migrate is sent");
            self.evidence.timeline.say("harness", text);
            let failed = |message| {
                let message = format!("{which}, {moment} us after migrate: {message}");
                StepError::Checks(vec![Finding::new(killed::NAME, message)])
            };
            let rehearsal = Some(true);
            let migrate = Migrate { command: wanted.command, rehearsal, ..Migrate::default() };
            self.kill_at(wanted.signal, moment, &migrate, &failed)?;
            self.evidence.collect();
            self.boot_again().map_err(|error| match error {
                StepError::Environment(_) => error,
                other => failed(format!("no VMM starts in its place: {other}")),
            })?;
        }
        Ok(Action::Boot)
    }

    fn kill_at(
        &mut self,
        signal: EndSignal,
        moment: i64,
        migrate: &Migrate,
        failed: &impl Fn(String) -> StepError,
    ) -> Result<(), StepError> {
        let (command, channel) = self.prepare(migrate, None)?;
        self.set_parameters(&command, migrate)?;
        let from = self.qmp.event_count();
        let migrate = [Command::new("migrate", channel.arguments.clone())];
        let pause = Duration::from_micros(moment.unsigned_abs());
        let mut killed_at = Instant::now();
        // The process alone: what it has started must end by itself.
        let pid = self.vm.pid();
        let mut strike = || {
            killed_at = Instant::now();
            kill(Pid::from_raw(pid), number(signal))
        };
        // Nothing is waited for here: the moment is what was drawn.
        let struck = if moment < 0 {
            let struck = strike();
            poll::during(pause, || None::<()>);
            // It may arrive or not.
            let _ = self.qmp.send(&migrate);
            struck
        } else {
            self.qmp.send(&migrate)?;
            poll::during(pause, || None::<()>);
            strike()
        };
        struck.map_err(|errno| failed(format!("cannot kill process {pid}: {errno}")))?;
        let limit = self.options.patience.end;
        let name = signal.name();
        let Some(ended) = self.vm.await_end(limit) else {
            return Err(failed(format!("process {pid} has not ended {limit:?} after {name}")));
        };
        self.qmp.await_end(limit).map_err(|e| failed(e.to_string()))?;
        match signal.asks() {
            true => self.check_gone(ended, Cause::Signal).map_err(|error| match error {
                StepError::Checks(findings) => failed(told(&findings)),
                other => other,
            })?,
            false => killed::check(&self.killed(name)).map_err(failed)?,
        }
        let events = self.qmp.events_from(from);
        let mut labels = events.iter().rev().map(|arrived| label(&arrived.event));
        let last = labels.find(|label| label != "SHUTDOWN");
        let gone = killed_at.elapsed();
        let heard = last.as_deref().unwrap_or("none");
        let text =
            format!("nothing is left {gone:?} after {name}; last event of the update: {heard}");
        self.evidence.timeline.say("harness", text);
        self.kills.push(Kill { moment_us: moment, last_event: last, gone });
        Ok(())
    }
}

fn number(signal: EndSignal) -> Signal {
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
