//! Carries out the steps of a case.

use std::path::Path;
use std::time::Duration;

use cpr_qmp::run_state::RunState;
use serde_json::json;

use crate::check::gone::Cause;
use crate::check::{Action, Finding};
use crate::observe::fds::FdTable;
use crate::observe::mailbox::View;
use crate::observe::observation::ObserveError;
use crate::observe::poll::{self, Deadline};
use crate::observe::qmp::{Command, QmpFault};
use crate::observe::watch;
use crate::run::failure::StepError;
use crate::run::peer::serial::{self, SerialClient};
use crate::run::session::Session;
use crate::run::session::host_restart::Left;
use crate::scenario::{Expect, Migrate, RunTarget, SerialAction, StartAt, Step, Wait};

/// Whether the VMM runs after a step.
#[derive(Debug)]
pub enum After {
    /// The VMM runs.
    Up,
    /// The VMM has ended, as it should.
    Gone,
    /// It has ended, and the case continues once the host has been restarted.
    Left(Box<Left>),
}

impl Session<'_> {
    /// Carries out `step` and runs all checks. At the first step, `boot`, the VMM already runs.
    pub fn step(&mut self, step: &Step) -> Result<After, StepError> {
        let ran = self.run_state.is_running();
        let action = match step {
            Step::Boot => {
                if ran {
                    self.await_boot(self.boots)?;
                }
                self.limit_memory()?;
                Action::Boot
            }
            Step::Stop => self.stop()?,
            Step::Cont => self.cont()?,
            Step::Bring(RunTarget::Running) if !ran => self.cont()?,
            Step::Bring(RunTarget::Stopped) if ran => self.stop()?,
            Step::Bring(_) => Action::Nothing,
            Step::Reset => self.reset()?,
            Step::Wait(wait) => {
                self.wait(*wait)?;
                Action::Nothing
            }
            Step::Go(marker) => {
                let page = self.page()?;
                page.go(*marker).map_err(|source| self.mailbox_error(source))?;
                Action::Nothing
            }
            Step::Inject(inject) => {
                self.injection = Some(inject.clone());
                return Ok(After::Up);
            }
            Step::Nmi => {
                self.qmp.execute(Command::plain("inject-nmi"))?;
                Action::Nothing
            }
            Step::Irqfd => self.inject("irqfd", StartAt { cpu: 0, page: 0 })?,
            Step::InitSipi(at) => {
                let action = self.inject("start", *at)?;
                self.start_pends = !self.run_state.is_running();
                action
            }
            Step::Faults(_)
            | Step::KillAt(_)
            | Step::Repeat(_)
            | Step::Signal(_)
            | Step::Interrupts(_) => {
                let why = "this step must be expanded when its scenario is read".to_owned();
                return Err(StepError::Process(why));
            }
            Step::EachMarker(last) => {
                for n in 1..=*last {
                    self.wait(Wait::Marker(n))?;
                    let action = self.update(&Migrate::default())?;
                    self.check(&action, ran)?;
                    let page = self.page()?;
                    page.go(n).map_err(|source| self.mailbox_error(source))?;
                }
                Action::Nothing
            }
            Step::RestartHost(restart) => {
                return Ok(After::Left(Box::new(self.leave_host(restart)?)));
            }
            Step::Measure(mode) => self.measured_update(*mode)?,
            Step::Soak(soak) => {
                match soak.in_boot {
                    true => self.soak_in_boot(soak)?,
                    false => self.soak(soak)?,
                }
                Action::Nothing
            }
            Step::Serial(wish) => {
                self.serial(*wish)?;
                Action::Nothing
            }
            Step::Migrate(migrate) if migrate.expect == Expect::Ended => {
                self.update_to_the_end(migrate)?;
                return Ok(After::Gone);
            }
            Step::Migrate(migrate) => {
                for _ in 1..migrate.repeat {
                    let action = self.update(migrate)?;
                    self.check(&action, ran)?;
                }
                self.update(migrate)?
            }
            Step::KillInUpdate(kill) => self.kill_in_update(kill)?,
            Step::KillVmm(kill) => match self.kill_vmm(kill)? {
                Some(action) => action,
                None => return Ok(After::Gone),
            },
            Step::EndBy(end) => {
                self.end_by(*end)?;
                return Ok(After::Gone);
            }
            Step::Interrupt(interrupt) => match self.interrupt(interrupt)? {
                Some(action) => action,
                None => return Ok(After::Gone),
            },
            Step::Race(commands) => match self.race(commands)? {
                Some(action) => action,
                None => return Ok(After::Gone),
            },
            Step::Limit(limit) => {
                self.limit(*limit)?;
                Action::Nothing
            }
            Step::Binary(change) => {
                self.change_binary(*change)?;
                Action::Nothing
            }
            Step::Quit => {
                self.quit()?;
                return Ok(After::Gone);
            }
            Step::Kill => {
                self.vm.kill();
                self.await_nothing("SIGKILL to its process group")?;
                return Ok(After::Gone);
            }
        };
        self.check(&action, ran)?;
        Ok(After::Up)
    }

    fn inject(&mut self, what: &str, at: StartAt) -> Result<Action, StepError> {
        let arguments = json!({ "what": what, "cpu": at.cpu, "page": at.page });
        self.qmp.execute(Command::new("x-inject", arguments))?;
        Ok(Action::Nothing)
    }

    pub(super) fn stop(&mut self) -> Result<Action, StepError> {
        self.qmp.execute(Command::plain("stop"))?;
        self.note_stop();
        Ok(Action::Stop)
    }

    pub(super) fn cont(&mut self) -> Result<Action, StepError> {
        self.resume()?;
        self.await_boot(self.boots)?;
        Ok(Action::Cont)
    }

    /// Continues the guest, and does not wait until it has booted.
    pub(super) fn resume(&mut self) -> Result<(), StepError> {
        self.qmp.execute(Command::plain("cont"))?;
        self.note_cont();
        Ok(())
    }

    fn reset(&mut self) -> Result<Action, StepError> {
        self.qmp.execute(Command::plain("system_reset"))?;
        self.note_reset();
        if self.run_state.is_running() {
            self.await_boot(self.boots)?;
        }
        Ok(Action::Reset)
    }

    /// Updates the expected run state after `stop`, which changes nothing unless the guest runs.
    pub(super) fn note_stop(&mut self) {
        if self.run_state.is_running() {
            self.run_state = RunState::Paused;
        }
    }

    /// Updates the expected run state after `cont`.
    pub(super) fn note_cont(&mut self) {
        if self.run_state == RunState::Prelaunch {
            self.boots += 1;
        }
        self.run_state = RunState::Running;
        self.start_pends = false;
    }

    /// Updates the expected run state after a reset: a stopped guest boots once it is continued.
    pub(super) fn note_reset(&mut self) {
        if self.run_state.is_running() {
            self.boots += 1;
        } else {
            self.run_state = RunState::Prelaunch;
        }
    }

    fn quit(&mut self) -> Result<(), StepError> {
        match self.qmp.execute(Command::plain("quit")) {
            // The VMM may exit before it writes its answer.
            Ok(_) | Err(QmpFault::Closed { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        self.await_gone(Cause::Quit)
    }

    /// Lets the guest continue from the marker that it waits at.
    pub(super) fn release_guest(&mut self) -> Result<(), StepError> {
        let page = self.page()?;
        let marker = page.read().map(|view| view.marker);
        marker.and_then(|n| page.go(n)).map_err(|source| self.mailbox_error(source))
    }

    /// Waits for the exit of a VMM that was told to end, and checks what is left.
    pub(super) fn await_gone(&mut self, cause: Cause) -> Result<(), StepError> {
        let Some(ended) = self.vm.await_end(self.options.patience.end) else {
            return Err(StepError::Process(format!(
                "process {} still runs {:?} after {}",
                self.vm.pid(),
                self.options.patience.end,
                cause.name()
            )));
        };
        self.qmp.await_end(self.options.patience.end)?;
        self.check_gone(ended, cause)
    }

    /// Waits until the guest's body runs on all vCPUs in boot number `boots`. While the guest is
    /// seen to fill its RAM, only the watchdog limits the wait.
    pub(super) fn await_boot(&mut self, boots: u32) -> Result<(), StepError> {
        let cpus = self.case.vm.cpus;
        let limit = match self.case.vm.is_linux() {
            true => self.options.patience.linux_boot,
            false => self.options.patience.boot,
        };
        let what = format!("boot {boots} of the guest on {cpus} vCPUs");
        let page = self.page()?;
        let is_up = |view: &View| view.boots >= boots && view.is_up(cpus);
        // Heartbeats while it fills its RAM. Those of an earlier boot do not count.
        let beats = |view: &View| (view.boots >= boots).then(|| view.heartbeats(cpus));
        let shown = || page.read().ok().as_ref().and_then(beats);
        loop {
            let before = shown();
            match self.await_guest(&what, limit, is_up) {
                Err(StepError::Guest { .. }) if shown().is_some_and(|now| Some(now) != before) => {}
                done => return done,
            }
        }
    }

    fn wait(&mut self, wait: Wait) -> Result<(), StepError> {
        let page = self.page()?;
        let start = page.read().map_err(|source| self.mailbox_error(source))?;
        let (cpus, limit) = (self.case.vm.cpus, self.options.patience.guest);
        match wait {
            Wait::Heartbeats(n) => {
                let start = start.heartbeats(cpus);
                self.await_guest(&format!("{n} heartbeats of every vCPU"), limit, |view| {
                    let now = view.heartbeats(cpus);
                    start.iter().zip(&now).all(|(a, b)| b.saturating_sub(*a) >= n)
                })
            }
            Wait::Sweeps(n) => {
                let what = format!("{n} whole sweeps after sweep {}", start.sweeps + 1);
                let limit = self.options.patience.sweeps_over(self.case.vm.memory.0, n);
                self.await_guest(&what, limit, |view| watch::swept(&start, view, cpus, n))
            }
            Wait::SerialLines(n) => {
                let lines = |session: &Self| session.serial.as_ref().map_or(0, SerialClient::lines);
                let wanted = lines(self) + n;
                poll::until(Deadline::after(limit), || {
                    (lines(self) >= wanted || self.check_serial().is_err()).then_some(())
                })
                .ok_or_else(|| StepError::Guest {
                    what: format!("{n} lines on the serial port"),
                    limit,
                    seen: format!("{} lines", lines(self)),
                })
            }
            Wait::Marker(n) => {
                self.await_guest(&format!("marker {n}"), limit, |view| view.marker >= n)
            }
        }
    }

    /// Connects or disconnects the serial client. This changes the VMM's descriptors, so the VMM is
    /// observed again for the next step to compare with.
    fn serial(&mut self, wish: SerialAction) -> Result<(), StepError> {
        let pid = self.vm.pid();
        let count = || FdTable::read(pid).map_or(0, |table| table.iter().count());
        let before = count();
        match wish {
            SerialAction::Connect => {
                let path = Path::new(&self.files.serial_socket);
                let client = SerialClient::connect(path, self.serial_next.clone());
                let client = client.map_err(|e| {
                    StepError::Process(format!("cannot connect to {}: {e}", path.display()))
                })?;
                self.serial = Some(client);
            }
            SerialAction::Leave => {
                disconnect(self.serial.take())?;
            }
        }
        let wanted = if wish == SerialAction::Connect { before + 1 } else { before - 1 };
        poll::until(Deadline::after(self.options.patience.guest), || {
            (count() == wanted || self.check_serial().is_err()).then_some(())
        })
        .ok_or_else(|| StepError::Process("the VMM did not notice the serial client".into()))?;
        // The client may have failed before the VMM noticed it.
        self.check_serial()?;
        self.seen = Some(self.observe()?);
        Ok(())
    }

    /// Reports an error of the serial port's client.
    pub(super) fn check_serial(&self) -> Result<(), StepError> {
        match self.serial.as_ref().and_then(SerialClient::wrong) {
            Some(why) => Err(complaint(why)),
            None => Ok(()),
        }
    }

    /// Polls the mailbox until `done`, damage, an unexpected boot, or the end of the process.
    fn await_guest(
        &mut self,
        what: &str,
        limit: Duration,
        done: impl Fn(&View) -> bool,
    ) -> Result<(), StepError> {
        let page = self.page()?;
        let seen = poll::until(Deadline::after(limit), || match page.read() {
            Ok(view) if done(&view) => Some(Ok(())),
            // The checks report it.
            Ok(view) if view.damage.is_some() || view.boots > self.boots => Some(Ok(())),
            Ok(_) => self.check_process().err().map(Err),
            Err(source) => Some(Err(self.mailbox_error(source))),
        });
        seen.unwrap_or_else(|| {
            let seen = page.read().map(|view| summary(&view)).unwrap_or_default();
            self.check_process()?;
            Err(StepError::Guest { what: what.to_owned(), limit, seen })
        })
    }

    /// Returns the mailbox of the current VMM.
    pub(super) fn page(&mut self) -> Result<crate::observe::mailbox::MailboxPage, StepError> {
        match &self.seen {
            Some(seen) => Ok(seen.page.clone()),
            // Before the first observation.
            None => Ok(self.observe()?.page),
        }
    }

    pub(super) fn mailbox_error(&self, source: std::io::Error) -> StepError {
        ObserveError::Mailbox { pid: self.vm.pid(), source }.into()
    }
}

/// Disconnects a client, whose last complaint counts too.
fn disconnect(client: Option<SerialClient>) -> Result<(), StepError> {
    client.and_then(SerialClient::leave).map_or(Ok(()), |why| Err(complaint(why)))
}

/// Converts an error of the serial port's client to a finding.
fn complaint(why: String) -> StepError {
    StepError::Checks(vec![Finding::new(serial::NAME, why)])
}

fn summary(view: &View) -> String {
    format!(
        "mailbox {}, phase {}, boot {}, {} vCPUs online, marker {}, sweep {}, heartbeats {:?}",
        if view.ready { "set up" } else { "not set up" },
        view.phase,
        view.boots,
        view.cpus_online,
        view.marker,
        view.sweeps,
        view.heartbeats(view.cpus_online)
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn last_complaint_of_a_client_is_a_finding() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial");
        let listener = UnixListener::bind(&path).unwrap();
        let client = SerialClient::connect(&path, Arc::default()).unwrap();
        let (mut port, _) = listener.accept().unwrap();
        port.write_all(b"\n00000001\n00000003\n").unwrap();
        let findings = disconnect(Some(client)).unwrap_err().findings().unwrap();
        assert_eq!(findings[0].check, serial::NAME);
        assert!(disconnect(None).is_ok());
    }
}
