//! Kills the VMM from outside, while no update is in progress.

use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::check::gone::Cause;
use crate::check::{Action, Finding, killed};
use crate::observe::poll;
use crate::run::failure::StepError;
use crate::run::session::Session;
use crate::run::session::kill_in_update::number;
use crate::run::session::revival::lost;
use crate::scenario::{EndBy, KillOutcome, KillVmm};

impl Session<'_> {
    /// Kills the VMM as often as wanted. The caller checks the last revival. Returns `None` if the
    /// VM is gone, as expected.
    pub(super) fn kill_vmm(&mut self, wanted: &KillVmm) -> Result<Option<Action>, StepError> {
        let ran = self.run_state.is_running();
        for nth in 0..wanted.repeat {
            if nth > 0 {
                self.check(&Action::Killed { in_update: false }, ran)?;
            }
            let pause = wanted.pause(self.case.seed, nth);
            // Waits for no condition: only lets the guest run for a random time.
            poll::during(pause, || None::<()>);
            self.measure();
            let from = self.qmp.event_count();
            let pid = self.vm.pid();
            let which = format!("kill {} of {}", nth + 1, wanted.repeat);
            self.evidence.timeline.say("harness", format!("{which}: SIGKILL to process {pid}"));
            let dying = self.kill_process(from, false)?;
            if wanted.expect == KillOutcome::Gone {
                self.await_nothing("SIGKILL")?;
                return Ok(None);
            }
            if !self.follow(dying)? {
                return Err(lost(pid, &format!("of {which}")));
            }
        }
        Ok(Some(Action::Killed { in_update: false }))
    }

    /// Ends the VMM including its keeper.
    pub(super) fn end_by(&mut self, end: EndBy) -> Result<(), StepError> {
        let pid = self.vm.pid();
        match (end.signal(), &self.vm.cgroup) {
            (Some(signal), _) => {
                kill(Pid::from_raw(pid), number(signal)).map_err(|errno| {
                    StepError::Process(format!("cannot signal process {pid}: {errno}"))
                })?;
                self.await_gone(Cause::Signal)
            }
            (None, Some(cgroup)) => {
                cgroup.kill()?;
                self.await_nothing("SIGKILL to its cgroup")
            }
            (None, None) => Err(StepError::Process("the VMM has no cgroup of its own".into())),
        }
    }

    /// Waits until nothing is left of a VM whose VMM was killed.
    pub(super) fn await_nothing(&mut self, by: &str) -> Result<(), StepError> {
        let limit = self.options.patience.end;
        let wrong = |why| StepError::Checks(vec![Finding::new(killed::NAME, why)]);
        if self.vm.await_end(limit).is_none() {
            let pid = self.vm.pid();
            return Err(wrong(format!("process {pid} still runs {limit:?} after {by}")));
        }
        killed::check(&self.killed(by)).map_err(wrong)?;
        self.qmp.await_end(limit)?;
        self.check_conversation()
    }
}
