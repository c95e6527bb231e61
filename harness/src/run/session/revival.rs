//! Follows a VM from its VMM's process, which dies, to the process in which the VM continues.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::check::handover::{CONTINUED, Continued};
use crate::check::{Finding, Handover, Revival, clients, pid, progress, reported};
use crate::observe::patience;
use crate::observe::poll::{self, Deadline};
use crate::observe::process::{self, Stat};
use crate::observe::qmp::QmpFault;
use crate::run::failure::StepError;
use crate::run::session::Session;
use crate::run::verdict::Revived;

/// A VMM process that has died or is about to.
pub(super) struct DyingProcess {
    /// The process.
    former: Stat,
    /// Its keepers at its death; empty if unknown.
    keepers: Vec<Stat>,
    /// When it was killed, if known.
    at: Option<Instant>,
    /// It dies at once, so the measured blackout is that of the revival.
    at_once: bool,
    /// The number of the first event after its death.
    from: usize,
}

impl Session<'_> {
    /// Describes a VMM that dies by itself, `at_once` or after a while; the events from number
    /// `from` on belong to its death.
    pub(super) fn to_die(&self, from: usize, at_once: bool) -> DyingProcess {
        DyingProcess {
            former: self.vm.started.clone(),
            keepers: Vec::new(),
            at: None,
            at_once,
            from,
        }
    }

    /// Sends SIGKILL to the VMM's process only. During an update the keepers are left unknown: the
    /// process may get another keeper between reading them and its death.
    pub(super) fn kill_process(
        &mut self,
        from: usize,
        in_update: bool,
    ) -> Result<DyingProcess, StepError> {
        let former = self.vm.started.clone();
        let keepers = if in_update { Vec::new() } else { process::keepers(former.pid) };
        let at = Instant::now();
        kill(Pid::from_raw(former.pid), Signal::SIGKILL).map_err(|errno| {
            StepError::Process(format!("cannot kill process {}: {errno}", former.pid))
        })?;
        Ok(DyingProcess { former, keepers, at: Some(at), at_once: true, from })
    }

    /// Waits until the VM continues in another process; returns false if the VM has ended instead.
    pub(super) fn follow(&mut self, dying: DyingProcess) -> Result<bool, StepError> {
        let DyingProcess { former, keepers, at, at_once, from } = dying;
        let limit = self.options.patience.update;
        let what = format!("{CONTINUED} or the end of the connection");
        let wrong = |check, why| Err(StepError::Checks(vec![Finding::new(check, why)]));
        let arrived = self.qmp.await_event(from, &what, limit, |event| event.event == CONTINUED);
        let event = match arrived {
            Ok(arrived) => Continued::of(&arrived.event),
            Err(QmpFault::Closed { .. }) => {
                self.vm.await_end(self.options.patience.end);
                return match self.successor_of(&former) {
                    None => Ok(false),
                    Some(successor) => wrong(
                        clients::CHECK.name,
                        format!(
                            "the VM continues in process {successor}, but the QMP connection closed"
                        ),
                    ),
                };
            }
            Err(late) => return wrong(reported::CHECK.name, format!("the VMM died: {late}")),
        };
        let event = match event {
            Ok(event) => event,
            Err(why) => return wrong(reported::CHECK.name, why),
        };
        self.vm.await_end(self.options.patience.end);
        let now = match self.vm.follow(event.pid) {
            Ok(now) => now.clone(),
            Err(e) => {
                return wrong(reported::CHECK.name, format!("{CONTINUED} has an invalid PID: {e}"));
            }
        };
        self.watchdog_follows(now.pid);
        let mut revival = Revival {
            former,
            keepers,
            event,
            beat: None,
            console: String::new(),
            notified: Vec::new(),
        };
        if let Err(why) = pid::inherited(&revival, &now) {
            return wrong(pid::NAME, why);
        }
        let (beat, blackout) = self.await_beat(at);
        revival.beat = beat.or(blackout.filter(|_| at_once));
        self.hear_elsewhere(&mut revival);
        let text = format!(
            "the VM continues in process {} instead of {}: {}",
            now.pid, revival.former.pid, revival.event.reason
        );
        self.evidence.timeline.say("harness", text);
        self.revivals.push(Revived {
            former: revival.former.pid,
            pid: now.pid,
            reason: revival.event.reason.clone(),
            blackout: blackout.filter(|_| patience::measures()),
            beat: revival.beat,
        });
        self.handover = Handover::Revived(Box::new(revival));
        Ok(true)
    }

    /// Returns the process that continues the VM of `former`, if there is one.
    fn successor_of(&self, former: &Stat) -> Option<i32> {
        let file = self.seen.as_ref()?.ram.file.as_ref()?.inode;
        let alive = || process::holders(file).ok()?.first().map(|stat| stat.pid);
        // Processes that exit with their VMM need a while.
        let gone = poll::until(Deadline::after(self.options.patience.settle), || {
            alive().is_none().then_some(())
        });
        if gone.is_some() { None } else { alive().filter(|pid| *pid != former.pid) }
    }

    /// Waits for a heartbeat of every vCPU of a running guest. Returns how long after `at` all had
    /// beaten, and the blackout as the guest saw it. If one does not beat, the check `progress`
    /// reports it.
    fn await_beat(&mut self, at: Option<Instant>) -> (Option<Duration>, Option<Duration>) {
        let measuring = self.measuring.take();
        let seen = self.seen.as_ref().filter(|_| self.run_state.is_running());
        let Some(page) = seen.map(|seen| seen.page.clone()) else { return (None, None) };
        let limit = self.options.patience.beat;
        if progress::continues(&page, self.case.vm.cpus, limit).is_err() {
            return (None, None);
        }
        let beat = at.map(|at| at.elapsed());
        (beat, measuring.and_then(|measuring| measuring.end(&page)))
    }

    /// Records what was written to standard error and to the service manager's socket.
    fn hear_elsewhere(&mut self, revival: &mut Revival) {
        let console = self.evidence.console_log();
        let notify = &self.notify;
        poll::until(Deadline::after(self.options.patience.settle), || {
            revival.console = console.since();
            revival.notified.extend(notify.received());
            let printed = revival.console.contains("the VM continues in process");
            (printed && !revival.notified.is_empty()).then_some(())
        });
    }

    /// Returns whether the VMM's process has died, or is a zombie.
    pub(super) fn has_died(&self) -> bool {
        !Stat::read(self.vm.pid()).is_ok_and(|stat| stat.is_alive())
    }
}

/// Returns the error for a VMM that died without a process that continues its VM.
pub(super) fn lost(pid: i32, when: &str) -> StepError {
    let why = format!("process {pid} died {when}, and no process continues its VM");
    StepError::Checks(vec![Finding::new(pid::NAME, why)])
}
