//! Updates, and commands that race with them.

use std::time::{Duration, Instant};

use cpr_qmp::message::Event;
use serde_json::{Value, json};

use crate::backend::{AcrossExec, Feature};
use crate::check::gone::Cause;
use crate::check::race::Race;
use crate::check::{self, Action, Ending, Finding};
use crate::coverage;
use crate::observe::patience::patient;
use crate::observe::poll::{self, Deadline};
use crate::observe::qmp::{Command, QmpFault};
use crate::observe::queries;
use crate::run::failure::StepError;
use crate::run::measure::blackout::Measurement;
use crate::run::session::Session;
use crate::run::update::channel::{self, Prepared as PreparedChannel};
use crate::run::update::command::{CommandBuilder, Prepared as PreparedCommand, Targets};
use crate::run::update::fault;
use crate::scenario::{
    Channel, CommandKind, Expect, HANGING_MS, Inject, Migrate, Mode, RaceCommand,
};

/// The default deadline of an update, in milliseconds; shorter than the harness waits.
pub(super) const DEADLINE_MS: u64 = 15_000;

/// How much slower than the slowest so far an update may become before it hangs.
const SLOWER: u32 = 4;

/// Returns the deadline of an update, in milliseconds. One that is to hang must get that far first:
/// on a busy host, it has several times as long as the `slowest` update so far.
fn deadline_ms(migrate: &Migrate, slowest: Duration) -> u64 {
    match migrate.deadline_ms {
        Some(HANGING_MS) => HANGING_MS.max((SLOWER * slowest).as_millis() as u64),
        other => other.unwrap_or(DEADLINE_MS),
    }
}

impl Session<'_> {
    /// Updates once.
    pub(super) fn update(&mut self, migrate: &Migrate) -> Result<Action, StepError> {
        if migrate.has_waiting_vmm() {
            return self.transfer(migrate);
        }
        if migrate.has_later_vmm() {
            return self.restart(migrate);
        }
        let injected = self.injection.take();
        let (command, channel) = self.prepare(migrate, injected.as_ref())?;
        let calm = self.calm(migrate);
        self.measure();
        let (from, asked) = (self.qmp.event_count(), self.asking(migrate));
        let began = Instant::now();
        let ending = match self.ask(&command, &channel, migrate) {
            Ok(()) => {
                let limit = match migrate.expect {
                    // A hanging update must time out first.
                    Expect::Survives => patient(Duration::from_millis(self.case.deadline_ms)),
                    _ => self.options.patience.update,
                };
                if migrate.command == CommandKind::Deferred {
                    self.start_deferred_load(&channel, from)?;
                }
                self.await_ending_within(from, limit)?
            }
            Err(QmpFault::Refused { error, .. }) => {
                self.measure_refusal(calm, asked);
                Ending::Refused(error.desc)
            }
            Err(other) => return Err(other.into()),
        };
        self.after_fault(migrate, injected.as_ref(), from, &ending)?;
        self.note_failure(migrate, injected.as_ref(), &ending);
        if ending == Ending::Completed {
            self.slowest = self.slowest.max(began.elapsed());
            self.note_update(channel.state.clone());
        }
        let errno = match &migrate.expect {
            Expect::Failed(failure) => failure.errno.or(migrate.command.errno()),
            _ => None,
        };
        let of_channel =
            migrate.channel != Channel::File || errno.is_some_and(|errno| errno.is_of_writing());
        Ok(Action::Update {
            mode: Mode::CprExec,
            expect: migrate.expect.clone(),
            ending,
            culprit: if of_channel { channel.state } else { command.culprit },
            errno: errno.map(|e| e.number()),
        })
    }

    /// Tells a VMM that waits for its state where the state is, unless the update ends first.
    fn start_deferred_load(
        &mut self,
        channel: &PreparedChannel,
        from: usize,
    ) -> Result<(), StepError> {
        let deadline = Deadline::after(self.options.patience.update);
        let waits = poll::until(deadline, || {
            let status = match self.qmp.execute(Command::plain("query-status")) {
                Ok(answer) => answer["status"].clone(),
                // A VMM that continues the guest refuses requests made to its predecessor.
                Err(QmpFault::Refused { .. }) => return None,
                Err(error) => return Some(Err(error)),
            };
            let ended = |label: &String| label.contains("completed") || label.contains("failed");
            match status == "inmigrate" || self.labels(from).iter().any(ended) {
                true => Some(Ok(status == "inmigrate")),
                false => None,
            }
        });
        let Some(waits) = waits else {
            return Err(StepError::Process(format!(
                "after {:?} the new VMM still does not wait for its state",
                self.options.patience.update
            )));
        };
        if waits? {
            let uri = json!({ "uri": format!("file:{}", channel.state) });
            match self.qmp.execute(Command::new("migrate-incoming", uri)) {
                // The end of the update shows a refusal as well, and is checked.
                Ok(_) | Err(QmpFault::Refused { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Ok(())
    }

    /// Requests an update that must end the VMM, and waits for its exit.
    pub(super) fn update_to_the_end(&mut self, migrate: &Migrate) -> Result<(), StepError> {
        let injected = self.injection.take();
        let (command, channel) = self.prepare(migrate, injected.as_ref())?;
        self.set_parameters(&command, migrate)?;
        self.qmp.send(&[Command::new("migrate", channel.arguments.clone())])?;
        if let Some(inject) = &injected {
            // A rehearsal may come first.
            self.check_hit(inject, self.options.patience.update)?;
        }
        self.await_gone(Cause::Signal)
    }

    /// Sends `commands` in one write. Returns `None` if the VMM has ended, as it should.
    pub(super) fn race(&mut self, commands: &[RaceCommand]) -> Result<Option<Action>, StepError> {
        let (command, channel) = self.prepare(&Migrate::default(), None)?;
        self.set_parameters(&command, &Migrate::default())?;
        let from = self.qmp.event_count();
        let messages: Vec<(RaceCommand, Command)> =
            commands.iter().filter_map(|c| Some((*c, message(*c, &channel)?))).collect();
        let ends = commands.iter().any(|c| c.ends());
        let sent: Vec<Command> = messages.iter().map(|(_, message)| message.clone()).collect();
        // The guest goes first: it acts on another CPU while the commands are being sent.
        for command in commands.iter().filter(|c| message(**c, &channel).is_none()) {
            self.release_guest()?;
            self.apply_effect(*command);
        }
        let ids = match self.qmp.send(&sent) {
            // The VMM has ended already.
            Err(QmpFault::Send { .. }) if ends => Vec::new(),
            sent => sent?,
        };
        let ran = self.run_state.is_running();
        let mut accepted = 0;
        let recreated = self.options.backend.dialect().across_exec == AcrossExec::Recreated;
        for ((command, message), id) in messages.iter().zip(ids) {
            match self.qmp.answer(&message.name, id) {
                Ok(_) if *command == RaceCommand::Migrate => accepted += 1,
                Ok(_) => self.apply_effect(*command),
                Err(QmpFault::Closed { .. }) if ends => break,
                // The answer was lost with the connection. The client still expects the effect.
                Err(QmpFault::Closed { .. }) if recreated && accepted > 0 => {
                    self.apply_effect(*command)
                }
                Err(QmpFault::Refused { .. }) if *command == RaceCommand::Migrate => {}
                Err(other) => return Err(other.into()),
            }
        }
        if ends {
            let by_guest = commands.contains(&RaceCommand::GuestExit);
            self.await_gone(match by_guest {
                true if self.case.vm.is_linux() => Cause::PowerOff,
                true => Cause::Guest,
                false => Cause::Quit,
            })?;
            let asked = commands.iter().take_while(|c| **c != RaceCommand::Quit);
            let asked = asked.filter(|c| **c == RaceCommand::Migrate).count();
            let wrong = |check: &str, why| Err(StepError::Checks(vec![Finding::new(check, why)]));
            if !recreated && !by_guest && accepted != asked.min(1) {
                let why = format!("{accepted} of {asked} updates before `quit` were accepted");
                return wrong(check::outcome::CHECK.name, why);
            }
            let seen = self.labels(from);
            return match (Race { commands, accepted, ran }).ended(&seen) {
                Err(why) if !recreated => wrong(check::events::CHECK.name, why),
                _ => Ok(None),
            };
        }
        for _ in 0..accepted {
            if let Ending::Failed(error) = self.await_ending(from)? {
                let why = format!("an update that raced with {commands:?} failed: {error}");
                return Err(StepError::Process(why));
            }
            self.note_update(channel.state.clone());
        }
        if commands.iter().any(|c| c.resets()) && self.run_state.is_running() {
            self.await_boot(self.boots)?;
        }
        Ok(Some(Action::Race { commands: commands.to_vec(), accepted }))
    }

    fn apply_effect(&mut self, command: RaceCommand) {
        match command {
            RaceCommand::Reset | RaceCommand::GuestReset => self.note_reset(),
            RaceCommand::Stop => self.note_stop(),
            RaceCommand::Cont => self.note_cont(),
            RaceCommand::Migrate | RaceCommand::Quit | RaceCommand::GuestExit => {}
        }
    }

    pub(super) fn prepare(
        &mut self,
        migrate: &Migrate,
        injected: Option<&Inject>,
    ) -> Result<(PreparedCommand, PreparedChannel), StepError> {
        self.tried += 1;
        let channel = channel::prepare(migrate.channel, &self.work, self.tried)?;
        let backend = self.next_build();
        let mut arguments = backend.update_arguments(self.launch(), &channel.state);
        if let Some(inject) = injected {
            arguments.extend(fault::arm(&mut self.qmp, inject)?);
        }
        let wrapper = self.under.of_updates(backend);
        let workshop = CommandBuilder { folder: &self.work, backend, wrapper };
        let earlier = self.earlier_state.as_deref();
        let exec_state = backend.dialect().exec_state;
        let targets = Targets { state: &channel.state, earlier, log: &self.files.log, exec_state };
        let command = workshop.prepare(migrate.command, arguments, targets)?;
        self.updated = self.executes(backend, command.wrapped)?;
        self.note_files();
        Ok((command, channel))
    }

    /// Starts to measure the blackout, if the guest runs.
    pub(super) fn measure(&mut self) {
        self.calibrate();
        self.measuring = match &self.seen {
            Some(seen) if self.run_state.is_running() => {
                Measurement::begin(&seen.page, self.options.patience.measure)
            }
            _ => None,
        };
    }

    fn ask(
        &mut self,
        command: &PreparedCommand,
        channel: &PreparedChannel,
        migrate: &Migrate,
    ) -> Result<(), QmpFault> {
        self.set_parameters(command, migrate)?;
        self.qmp.execute(Command::new("migrate", channel.arguments.clone())).map(drop)
    }

    pub(super) fn set_parameters(
        &mut self,
        command: &PreparedCommand,
        migrate: &Migrate,
    ) -> Result<(), QmpFault> {
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        self.qmp.execute(Command::new("migrate-set-capabilities", events))?;
        let mut parameters = json!({ "mode": "cpr-exec" });
        if let Some(words) = &command.words {
            coverage::executed(words);
            self.asked.clone_from(&command.arguments);
            parameters["cpr-exec-command"] = json!(words);
        }
        let has = |feature| self.options.backend.lacks(feature).is_none();
        if let Some(rehearsal) = migrate.rehearsal.filter(|_| has(Feature::Rehearsal)) {
            parameters["x-cpr-exec-rehearsal"] = json!(rehearsal);
        }
        if has(Feature::Deadline) {
            // Always set, because an earlier update may have changed it.
            parameters["x-cpr-exec-deadline"] = json!(deadline_ms(migrate, self.slowest));
        }
        if let Some(ms) = migrate.max_downtime_ms {
            parameters["x-max-downtime"] = json!(ms);
        }
        self.qmp.execute(Command::new("migrate-set-parameters", parameters))?;
        self.note_parameters()
    }

    /// Updates the observation before the step, so that parameters set by the harness do not count
    /// as changes.
    pub(super) fn note_parameters(&mut self) -> Result<(), QmpFault> {
        let Some(seen) = self.seen.as_mut().filter(|seen| !seen.queries.is_empty()) else {
            return Ok(());
        };
        let now = queries::of_migration(&mut self.qmp)?;
        seen.queries.replace(queries::is_of_migration, now);
        Ok(())
    }

    /// Waits for the end of an update.
    pub(super) fn await_ending(&mut self, from: usize) -> Result<Ending, StepError> {
        self.await_ending_within(from, self.options.patience.update)
    }

    fn await_ending_within(&mut self, from: usize, limit: Duration) -> Result<Ending, StepError> {
        let status = |event: &Event| {
            let data = event.data.as_ref().filter(|_| event.event == "MIGRATION")?;
            data.get("status").and_then(Value::as_str).map(str::to_owned)
        };
        let recreated = self.options.backend.dialect().across_exec == AcrossExec::Recreated;
        let last = |event: &Event| match status(event).as_deref() {
            // The update can still fail after that; only a closed connection shows success.
            Some("completed") => !recreated,
            other => matches!(other, Some("failed" | "cancelled")),
        };
        let what = match recreated {
            true => "the end of the connection or MIGRATION(failed)",
            false => "MIGRATION(completed) or MIGRATION(failed)",
        };
        let ended = self.qmp.await_event(from, what, limit, last);
        let ended = match ended {
            Ok(ended) => ended,
            Err(QmpFault::Closed { .. }) if recreated => return self.await_takeover(),
            Err(e) => {
                // If the process has exited, or is about to, report that instead.
                if matches!(e, QmpFault::Closed { .. }) {
                    self.vm.await_end(self.options.patience.settle);
                }
                self.check_process()?;
                return Err(e.into());
            }
        };
        match status(&ended.event).as_deref() {
            Some("completed") => Ok(Ending::Completed),
            _ => Ok(Ending::Failed(self.migration_error()?)),
        }
    }

    /// Connects to the new VMM and waits until it has taken over the VM.
    fn await_takeover(&mut self) -> Result<Ending, StepError> {
        if let Err(e) = self.connect_again() {
            // If the VMM is exiting, the kernel needs a while to complete that.
            self.vm.await_end(self.options.patience.settle);
            self.check_process()?;
            return Err(e);
        }
        let limit = self.options.patience.update;
        let (qmp, mut seen) = (&mut self.qmp, String::new());
        let over = poll::until(Deadline::after(limit), || {
            let migrate: Value = match qmp.query("query-migrate") {
                Ok(migrate) => migrate,
                Err(e) => return Some(Err(e)),
            };
            seen = migrate.to_string();
            matches!(migrate["status"].as_str(), Some("completed" | "failed"))
                .then_some(Ok(migrate))
        });
        match over {
            Some(Ok(migrate)) if migrate["status"] == "completed" => Ok(Ending::Completed),
            Some(Ok(migrate)) => {
                self.check_process()?;
                let why = migrate["error-desc"].as_str().unwrap_or("it gives no reason");
                let why = format!("the new VMM failed to take over the VM: {why}");
                Err(StepError::Checks(vec![Finding::new("outcome", why)]))
            }
            Some(Err(e)) => {
                self.vm.await_end(self.options.patience.settle);
                self.check_process()?;
                Err(e.into())
            }
            _ => {
                self.check_process()?;
                let why = format!("{limit:?} after exec the VM is not taken over: {seen}");
                Err(StepError::Checks(vec![Finding::new("outcome", why)]))
            }
        }
    }
}

/// Returns the QMP command; `None` for actions of the guest.
fn message(command: RaceCommand, channel: &PreparedChannel) -> Option<Command> {
    let command = match command {
        RaceCommand::GuestReset | RaceCommand::GuestExit => return None,
        RaceCommand::Migrate => Command::new("migrate", channel.arguments.clone()),
        RaceCommand::Reset => Command::plain("system_reset"),
        RaceCommand::Quit => Command::plain("quit"),
        RaceCommand::Stop => Command::plain("stop"),
        RaceCommand::Cont => Command::plain("cont"),
    };
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_that_hangs_gets_longer_on_a_slow_host() {
        let migrate = |deadline_ms| Migrate { deadline_ms, ..Migrate::default() };
        let of = |deadline, ms| deadline_ms(&migrate(deadline), Duration::from_millis(ms));
        assert_eq!(of(Some(HANGING_MS), 0), HANGING_MS);
        assert_eq!(of(Some(HANGING_MS), 500), 2000);
        assert_eq!(of(Some(700), 500), 700);
        assert_eq!(of(None, 500), DEADLINE_MS);
    }
}
