//! Cutting off updates by SIGKILL.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::failure::StepError;
use super::session::Session;
use super::verdict::Kill;
use crate::check::killed::{self, Killed};
use crate::check::{Action, Finding};
use crate::observe::qmp::{Command, label};
use crate::scenario::{KillInUpdate, Migrate};

impl Session<'_> {
    /// Kills the VMM in an update, looks at what is left, starts one in its place; as often as
    /// wanted. The last one is for the caller to check.
    pub(super) fn kill_in_update(&mut self, wanted: &KillInUpdate) -> Result<Action, StepError> {
        for number in 0..wanted.repeat {
            if number > 0 {
                self.check(&Action::Boot, true)?;
            }
            let moment = wanted.moment(self.case.seed, number);
            let which = format!("kill {} of {}", number + 1, wanted.repeat);
            let text = format!("{which}: SIGKILL {moment} us after migrate is sent");
            self.evidence.timeline.say("harness", text);
            let failed = |message| {
                let message = format!("{which}, {moment} us after migrate: {message}");
                StepError::Checks(vec![Finding::new(killed::NAME, message)])
            };
            let rehearsal = Some(true);
            let migrate = Migrate { command: wanted.command, rehearsal, ..Migrate::default() };
            self.kill_at(moment, &migrate, &failed)?;
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
        moment: i64,
        migrate: &Migrate,
        failed: &impl Fn(String) -> StepError,
    ) -> Result<(), StepError> {
        let (command, channel) = self.prepare(migrate, None)?;
        self.set_parameters(&command, migrate)?;
        let from = self.qmp.event_count();
        let migrate = [Command::new("migrate", json!({ "uri": channel.uri }))];
        let pause = Duration::from_micros(moment.unsigned_abs());
        let mut killed_at = Instant::now();
        // The process alone: what it has started must end by itself.
        let pid = self.vm.pid();
        let mut strike = || {
            killed_at = Instant::now();
            kill(Pid::from_raw(pid), Signal::SIGKILL)
        };
        // Nothing is waited for here: the moment is what was drawn.
        let struck = if moment < 0 {
            let struck = strike();
            thread::sleep(pause);
            // It may arrive or not.
            let _ = self.qmp.send(&migrate);
            struck
        } else {
            self.qmp.send(&migrate)?;
            thread::sleep(pause);
            strike()
        };
        struck.map_err(|errno| failed(format!("cannot kill process {pid}: {errno}")))?;
        let limit = self.options.patience.end;
        if self.vm.await_end(limit).is_none() {
            return Err(failed(format!("process {pid} has not ended {limit:?} after SIGKILL")));
        }
        self.qmp.await_end(limit).map_err(|e| failed(e.to_string()))?;
        killed::check(&Killed {
            pid,
            work: &self.work,
            socket: Path::new(&self.files.qmp),
            outside: &self.outside,
            limit,
        })
        .map_err(failed)?;
        let last = self.qmp.events_from(from).last().map(|arrived| label(&arrived.event));
        let gone = killed_at.elapsed();
        let heard = last.as_deref().unwrap_or("none");
        let text =
            format!("nothing is left {gone:?} after SIGKILL; last event of the update: {heard}");
        self.evidence.timeline.say("harness", text);
        self.kills.push(Kill { moment_us: moment, last_event: last, gone });
        Ok(())
    }
}
