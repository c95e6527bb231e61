//! Updates to a new VMM in another process that waits for the VM (`cpr-transfer`, `normal`).

use std::time::Duration;

use cpr_qmp::message::Event;
use cpr_qmp::run_state::{RunState, StatusInfo};
use serde_json::{Value, json};

use crate::backend::{Channels, Feature};
use crate::check::gone::{self, Cause, Gone};
use crate::check::run_state::name;
use crate::check::{self, Action, Ending, Finding, Handover, Transfer, pid};
use crate::observe::cpu_time;
use crate::observe::image::Image;
use crate::observe::observation::ObserveError;
use crate::observe::patience::patient;
use crate::observe::poll::{self, Deadline};
use crate::observe::qmp::{Command, Qmp, QmpFault, label};
use crate::process::environment::EnvironmentError;
use crate::run::failure::StepError;
use crate::run::session::Session;
use crate::run::session::clients::{EventListener, tap};
use crate::run::session::successor::Successor;
use crate::run::session::update::DEADLINE_MS;
use crate::scenario::{Expect, Migrate, Mode, NewVmm};

/// The statuses with which an update ends in the old VMM.
const ENDS: [&str; 3] = ["completed", "failed", "cancelled"];

/// The event that tells that a pass over RAM begins.
const PASS: &str = "MIGRATION_PASS";

/// How long the last pass may take: long enough for the guest `pattern`, which writes all of its RAM
/// again and again, and half of what the check `blackout` allows.
const DOWNTIME_LIMIT: Duration = Duration::from_secs(1);

impl Session<'_> {
    /// Starts a new VMM, and updates to it once.
    pub(super) fn transfer(&mut self, migrate: &Migrate) -> Result<Action, StepError> {
        self.tried += 1;
        let injected = self.arm_in_old()?;
        // Before the new VMM creates files, which are its own.
        self.note_files();
        let channels = Channels::waiting(migrate, &self.work, self.tried)
            .map_err(EnvironmentError::file("choose a TCP port for", &self.work))?;
        let channels = self.options.backend.channels(channels);
        let fault = migrate.new_vmm_fault.as_ref();
        let mut successor = match migrate.new_vmm {
            NewVmm::None => None,
            kind => Some(self.start_successor(kind, fault, &channels, migrate.mode)?),
        };
        if let Some(new) = &mut successor {
            match migrate.new_vmm {
                NewVmm::KilledListening => new.kill(),
                kind if kind.is_stopped() => new.hold(self.options.patience.settle)?,
                _ => {}
            }
        }
        let (from, ending) = self.ask_to_move(migrate, channels.migrate(), |session, from| {
            session.await_transfer(migrate.new_vmm, &mut successor, from)
        })?;
        self.after_fault(migrate, injected.as_ref(), from, &ending)?;
        match successor {
            Some(mut new) if ending == Ending::Completed => {
                self.await_resumed(&mut new)?;
                let former = self.describe_former(migrate)?;
                self.quit_former()?;
                self.move_to(new, former)?;
            }
            Some(new) => self.abandon(new)?,
            None => {}
        }
        self.note_failure(migrate, injected.as_ref(), &ending);
        let unreachable = migrate.new_vmm.is_unreachable();
        let culprit = if unreachable { channels.first() } else { String::new() };
        Ok(moved(migrate, ending, culprit))
    }

    /// Sends `migrate` with these arguments, and waits for its end with `wait`, unless it is
    /// cancelled. Returns the number of events before that, too.
    pub(super) fn ask_to_move(
        &mut self,
        migrate: &Migrate,
        arguments: Value,
        wait: impl FnOnce(&mut Self, usize) -> Result<Ending, StepError>,
    ) -> Result<(usize, Ending), StepError> {
        let calm = self.calm(migrate);
        self.measure();
        let (from, asked) = (self.qmp.event_count(), self.asking(migrate));
        let ending = match self.ask_to_migrate(migrate, arguments) {
            Ok(()) if migrate.is_cancelled_in_a_copy() => self.cancel_copy(from)?,
            Ok(()) => wait(self, from)?,
            Err(QmpFault::Refused { error, .. }) => {
                self.measure_refusal(calm, asked);
                Ending::Refused(error.desc)
            }
            Err(other) => return Err(other.into()),
        };
        Ok((from, ending))
    }

    fn ask_to_migrate(&mut self, migrate: &Migrate, arguments: Value) -> Result<(), QmpFault> {
        let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        self.qmp.execute(Command::new("migrate-set-capabilities", events))?;
        let mut parameters = json!({ "mode": migrate.mode.name() });
        if migrate.mode == Mode::Normal {
            parameters["max-bandwidth"] = json!(migrate.max_bandwidth.map_or(0, |bytes| bytes.0));
            parameters["downtime-limit"] = json!(patient(DOWNTIME_LIMIT).as_millis() as u64);
        }
        if self.options.backend.lacks(Feature::Deadline).is_none() {
            // An earlier update may have changed it.
            parameters["x-cpr-exec-deadline"] = json!(DEADLINE_MS);
        }
        self.qmp.execute(Command::new("migrate-set-parameters", parameters))?;
        self.note_parameters()?;
        self.qmp.execute(Command::new("migrate", arguments)).map(drop)
    }

    /// Waits for the end of an update in the old VMM, and connects to the new one meanwhile.
    fn await_transfer(
        &mut self,
        kind: NewVmm,
        successor: &mut Option<Successor>,
        from: usize,
    ) -> Result<Ending, StepError> {
        let mut unconnected = String::new();
        match (kind, successor.as_mut()) {
            (NewVmm::KilledConnected, Some(new)) => new.kill(),
            (NewVmm::Held, _) => {
                self.qmp.execute(Command::plain("migrate_cancel"))?;
            }
            (_, Some(new)) => match self.connect_to(new, from) {
                Ok(()) => self.check_waiting(new)?,
                Err(why) => unconnected = why.to_string(),
            },
            (_, None) => {}
        }
        match self.await_former(from)? {
            Ending::Completed if !unconnected.is_empty() || successor.is_none() => {
                Err(self.not_taken_over(successor.as_mut(), unconnected))
            }
            ending => Ok(ending),
        }
    }

    /// Cancels an update in its second pass, which copies again what the guest has written meanwhile.
    fn cancel_copy(&mut self, from: usize) -> Result<Ending, StepError> {
        let limit = self.options.patience.update;
        let again = |event: &Event| {
            let pass = event.data.as_ref().and_then(|data| data["pass"].as_u64());
            event.event == PASS && pass > Some(1) || ended(event).is_some()
        };
        self.qmp.await_event(from, "the second MIGRATION_PASS", limit, again)?;
        self.qmp.execute(Command::plain("migrate_cancel"))?;
        self.await_former(from)
    }

    /// Waits for the end of an update in the old VMM.
    pub(super) fn await_former(&mut self, from: usize) -> Result<Ending, StepError> {
        let limit = self.options.patience.update;
        let what = "MIGRATION(completed), MIGRATION(failed) or MIGRATION(cancelled)";
        let over = self.qmp.await_event(from, what, limit, |event| ended(event).is_some());
        let over = match over {
            Ok(over) => over,
            Err(late) => {
                self.check_process()?;
                return Err(late.into());
            }
        };
        Ok(match ended(&over.event).as_deref() {
            Some("failed") => Ending::Failed(self.migration_error()?),
            Some("cancelled") => Ending::Cancelled,
            _ => Ending::Completed,
        })
    }

    /// Returns the error for a new VMM that has not taken over although the old one says so; `why`
    /// is known, unless it has ended.
    fn not_taken_over(&self, new: Option<&mut Successor>, why: String) -> StepError {
        let ended = new.and_then(|new| {
            new.vm.await_end(self.options.patience.settle);
            new.ended()
        });
        let why = ended.unwrap_or(why);
        outcome(format!("the old VMM reports `completed`, and no new one has taken over: {why}"))
    }

    /// Connects both clients to the new VMM, which answers only once it has read the state of the
    /// `cpr` channel. Gives up when it ends, or when the old VMM has reported a failure since event
    /// `from`.
    pub(super) fn connect_to(&self, new: &mut Successor, from: usize) -> Result<(), QmpFault> {
        let limit = self.options.patience.greeting;
        let sockets = [new.files.qmp.clone(), self.next_build().second_qmp(&new.files)];
        let (qmp, new_vmm) = (&self.qmp, std::cell::RefCell::new(&mut *new));
        let give_up = || {
            let arrived = qmp.events_from(from);
            let failed = arrived.iter().filter_map(|arrived| ended(&arrived.event));
            let failed = failed.into_iter().find(|status| status != "completed");
            let failed = failed.map(|status| format!("the old VMM reports `{status}`"));
            failed.or_else(|| new_vmm.borrow_mut().ended())
        };
        let connect = |path: &String, suffix: &str| {
            let tap = tap(&self.evidence, &format!("-{}{suffix}", self.tried));
            Qmp::connect(path.as_ref(), limit, tap, give_up)
        };
        let clients = [connect(&sockets[0], "")?, connect(&sockets[1], "-2")?];
        new.clients = Some(clients);
        Ok(())
    }

    /// Checks that a new VMM that has not taken over does not run the guest.
    pub(super) fn check_waiting(&mut self, new: &mut Successor) -> Result<(), StepError> {
        let Some([qmp, _]) = &mut new.clients else { return Ok(()) };
        // Where the answer is missing it has ended, which the old VMM's report will tell.
        let Ok(status) = qmp.query::<StatusInfo>("query-status") else { return Ok(()) };
        // Asked later: if this one runs, the new one began too early.
        let old: StatusInfo = self.qmp.query("query-status")?;
        let text = format!(
            "the new VMM is in {}, the old one in {}",
            name(&status.status),
            name(&old.status)
        );
        self.evidence.timeline.say("harness", &text);
        if status.running && old.running {
            let why = format!("two VMMs run the guest: {text}");
            return Err(StepError::Checks(vec![Finding::new(check::run_state::CHECK.name, why)]));
        }
        Ok(())
    }

    /// Waits until the new VMM has taken over the VM.
    pub(super) fn await_resumed(&mut self, new: &mut Successor) -> Result<(), StepError> {
        let limit = self.options.patience.update;
        let why = match &mut new.clients {
            Some([qmp, _]) => resumed(qmp, limit),
            None => Err(String::new()),
        };
        let Err(why) = why else { return Ok(()) };
        Err(self.not_taken_over(Some(new), why))
    }

    /// Makes the new VMM the VMM of this session. The former one has ended.
    pub(super) fn move_to(
        &mut self,
        new: Successor,
        mut transfer: Transfer,
    ) -> Result<(), StepError> {
        let (former, group) = (self.vm.pid(), self.vm.group());
        transfer.sockets_left = new.channels_left();
        if !self.options.backend.dialect().removes_its_channel {
            // As an operator does.
            for path in std::mem::take(&mut transfer.sockets_left) {
                std::fs::remove_file(&path).map_err(EnvironmentError::file("remove", &path))?;
            }
        }
        let Successor { vm, gateway, files, clients, .. } = new;
        let Some([qmp, second]) = clients else { return Err(outcome("no connection".into())) };
        let text = format!("the VM continues in process {} instead of {former}", vm.pid());
        self.evidence.timeline.say("harness", text);
        self.former_violations = self.conversation();
        self.watchdog_follows(vm.pid());
        self.watchdog_no_longer_ends(group);
        (self.vm, self.qmp, self.second_client) = (vm, qmp, EventListener::new(second));
        self.gateway = gateway;
        self.events_checked = 0;
        if files.ram != self.files.ram && self.case.vm.memory_file {
            // As an operator does, who has no use for it any more.
            let former = &self.files.ram;
            std::fs::remove_file(former).map_err(EnvironmentError::file("remove", former))?;
        }
        self.evidence.follow(&files);
        self.startup = self.evidence.startup(&files, &self.case.vm, &*self.options.backend);
        self.files = files;
        self.handover = Handover::NewProcess(Box::new(transfer));
        self.note_transfer();
        Ok(())
    }

    /// Observes the old VMM, which has reported the update as completed.
    pub(super) fn describe_former(&mut self, migrate: &Migrate) -> Result<Transfer, StepError> {
        let former = self.vm.started.clone();
        let cpus = self.seen.iter().flat_map(|seen| &seen.cpus);
        let threads: Vec<i64> = cpus.map(|cpu| cpu.thread_id).collect();
        let spent = || cpu_time::spent(former.pid, threads.iter().copied());
        // Saving its state wakes a vCPU's thread, which on a busy host goes back to sleep later.
        let asleep = || cpu_time::asleep(threads.iter().copied()).then_some(());
        poll::until(Deadline::after(self.options.patience.settle), asleep);
        let before = spent();
        poll::during(self.options.patience.still, || None::<()>);
        let vcpus_ran = before.zip(spent()).map(|(before, after)| after.saturating_sub(before));
        let status: StatusInfo = self.qmp.query("query-status")?;
        let told: Value = self.qmp.query("query-migrate")?;
        let events = self.take_events();
        let labels = |events: &[Event]| events.iter().map(label).collect();
        let theirs = self.second_client.hear(&events, labels, self.options.patience.events);
        // One that has ended by itself was as it was last seen.
        let image = match (Image::of(former.pid), &self.seen) {
            (Ok(image), _) => image,
            (Err(_), Some(seen)) if self.gateway.is_some() => seen.image.clone(),
            (Err(error), _) => return Err(ObserveError::from(error).into()),
        };
        Ok(Transfer {
            mode: migrate.mode,
            later: migrate.has_later_vmm(),
            former,
            image,
            files: self.files.clone(),
            run_state: status.status,
            migration: told["status"].as_str().map(str::to_owned),
            ram: told["ram"].clone(),
            vcpus_ran,
            events,
            second_client: theirs,
            sockets_left: Vec::new(),
        })
    }

    /// Tells the old VMM to quit, which has given the VM up, and checks what it leaves.
    pub(super) fn quit_former(&mut self) -> Result<(), StepError> {
        match self.qmp.execute(Command::plain("quit")) {
            Ok(_) | Err(QmpFault::Closed { .. }) => {}
            Err(other) => return Err(other.into()),
        }
        let limit: Duration = self.options.patience.end;
        let wrong = |check: &str, why| StepError::Checks(vec![Finding::new(check, why)]);
        let Some(ended) = self.vm.await_end(limit) else {
            let former = self.vm.pid();
            return Err(wrong(
                pid::NAME,
                format!(
                    "process {former}, which has given the VM up, still runs {limit:?} after quit"
                ),
            ));
        };
        self.qmp.await_end(limit)?;
        let events = self.take_events();
        let control = self.options.backend.control_socket(&self.files);
        let sockets = self.files.sockets(&self.case.vm).into_iter();
        let sockets: Vec<&str> = sockets.chain(control.as_deref()).collect();
        let pid_file = self.files.pid_file.as_ref();
        let gone = Gone { ended, cause: Cause::Quit, sockets: &sockets, pid_file, events: &events };
        gone::check(&gone).map_err(|why| wrong(gone::NAME, format!("the former VMM: {why}")))
    }
}

/// Waits until the VMM of this connection has taken over a VM.
pub(super) fn resumed(qmp: &mut Qmp, limit: Duration) -> Result<(), String> {
    let mut seen = String::new();
    let over = poll::until(Deadline::after(limit), || {
        let status: Result<StatusInfo, QmpFault> = qmp.query("query-status");
        let migrate = status.and_then(|status| Ok((status, qmp.query("query-migrate")?)));
        let (status, migrate): (StatusInfo, Value) = match migrate {
            Ok(both) => both,
            Err(fault) => return Some(Err(fault.to_string())),
        };
        seen = format!("run state {}, query-migrate {migrate}", name(&status.status));
        let done = status.status != RunState::Inmigrate && migrate["status"] == "completed";
        done.then_some(Ok(()))
    });
    over.unwrap_or_else(|| Err(format!("{limit:?} after that, the new VMM shows {seen}")))
}

/// What an update to another process did; an error must name the `culprit`.
pub(super) fn moved(migrate: &Migrate, ending: Ending, culprit: String) -> Action {
    let errno = match &migrate.expect {
        Expect::Failed(failure) => failure.errno.map(|errno| errno.number()),
        _ => None,
    };
    Action::Update { mode: migrate.mode, expect: migrate.expect.clone(), ending, culprit, errno }
}

/// The status with which an update ends, if this event tells it.
fn ended(event: &Event) -> Option<String> {
    let data = event.data.as_ref().filter(|_| event.event == "MIGRATION")?;
    let status = data.get("status").and_then(Value::as_str)?;
    ENDS.contains(&status).then(|| status.to_owned())
}

pub(super) fn outcome(why: String) -> StepError {
    StepError::Checks(vec![Finding::new(check::outcome::CHECK.name, why)])
}
