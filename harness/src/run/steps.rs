//! Carrying out one step.

use std::time::Duration;

use cpr_qmp::run_state::RunState;

use super::failure::StepError;
use super::session::Session;
use crate::check::Action;
use crate::check::gone::Cause;
use crate::observe::mailbox::View;
use crate::observe::observation::ObserveError;
use crate::observe::poll::{self, Deadline};
use crate::observe::qmp::{Command, QmpFault};
use crate::scenario::{Expect, RunWish, Step, Wait};

/// A step that left the VMM up, or one that ended it.
#[derive(Debug, PartialEq, Eq)]
pub enum After {
    /// It is up.
    Up,
    /// It is gone, and that was right.
    Gone,
}

impl Session<'_> {
    /// Carries out `step`, the first one excepted, and checks everything.
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
            Step::Bring(RunWish::Running) if !ran => self.cont()?,
            Step::Bring(RunWish::Stopped) if ran => self.stop()?,
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
            Step::Faults(_) | Step::Signal(_) | Step::Interrupts(_) => {
                let why = "faults, signal and interrupts are taken apart when a scenario is read";
                let why = why.to_owned();
                return Err(StepError::Process(why));
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
                self.qmp.await_end(self.options.patience.end)?;
                return Ok(After::Gone);
            }
        };
        self.check(&action, ran)?;
        Ok(After::Up)
    }

    fn stop(&mut self) -> Result<Action, StepError> {
        self.qmp.execute(Command::plain("stop"))?;
        self.run_state = RunState::Paused;
        Ok(Action::Stop)
    }

    fn cont(&mut self) -> Result<Action, StepError> {
        self.qmp.execute(Command::plain("cont"))?;
        if self.run_state == RunState::Prelaunch {
            self.boots += 1;
        }
        self.run_state = RunState::Running;
        self.await_boot(self.boots)?;
        Ok(Action::Cont)
    }

    fn reset(&mut self) -> Result<Action, StepError> {
        self.qmp.execute(Command::plain("system_reset"))?;
        self.boots += 1;
        if self.run_state.is_running() {
            self.await_boot(self.boots)?;
        }
        Ok(Action::Reset)
    }

    fn quit(&mut self) -> Result<(), StepError> {
        match self.qmp.execute(Command::plain("quit")) {
            // It may be gone before its answer is written.
            Ok(_) | Err(QmpFault::Closed { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        self.await_gone(Cause::Quit)
    }

    /// Lets the guest go on from the marker it waits at.
    pub(super) fn release_guest(&mut self) -> Result<(), StepError> {
        let page = self.page()?;
        let marker = page.read().map(|view| view.marker);
        marker.and_then(|n| page.go(n)).map_err(|source| self.mailbox_error(source))
    }

    /// Waits for the end of a VMM that was told to end, and looks at what is left.
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

    /// Waits until the guest's body runs on all vCPUs, in its boot number `boots`.
    pub(super) fn await_boot(&mut self, boots: u32) -> Result<(), StepError> {
        let cpus = self.case.vm.cpus;
        let what = format!("boot {boots} of the guest on {cpus} vCPUs");
        self.await_guest(&what, self.options.patience.boot, |view| {
            view.boots >= boots && view.is_up(cpus)
        })
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
                let wanted = start.sweeps + n;
                self.await_guest(&format!("sweep {wanted}"), limit, |view| view.sweeps >= wanted)
            }
            Wait::Marker(n) => {
                self.await_guest(&format!("marker {n}"), limit, |view| view.marker >= n)
            }
        }
    }

    /// Watches the mailbox until `done`, or damage, or the end of the process.
    fn await_guest(
        &mut self,
        what: &str,
        limit: Duration,
        done: impl Fn(&View) -> bool,
    ) -> Result<(), StepError> {
        let page = self.page()?;
        let seen = poll::until(Deadline::after(limit), || match page.read() {
            Ok(view) if done(&view) => Some(Ok(())),
            // The checks tell what it is.
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

    /// The mailbox of the VMM as it is now.
    fn page(&mut self) -> Result<crate::observe::mailbox::MailboxPage, StepError> {
        match &self.seen {
            Some(seen) => Ok(seen.page.clone()),
            // Before the first look.
            None => Ok(self.observe()?.page),
        }
    }

    fn mailbox_error(&self, source: std::io::Error) -> StepError {
        ObserveError::Mailbox { pid: self.vm.pid(), source }.into()
    }
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
