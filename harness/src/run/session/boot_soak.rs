//! Runs updates at random instants of a guest's boot.

use std::time::Duration;

use crate::check::Action;
use crate::observe::mailbox::View;
use crate::observe::poll;
use crate::run::failure::StepError;
use crate::run::session::Session;
use crate::scenario::Soak;

impl Session<'_> {
    /// Updates a guest that has not started, and again each time it has run for a while, until it
    /// has booted. It is stopped while an update is checked, so that checks do not use up its boot.
    pub(super) fn soak_in_boot(&mut self, soak: &Soak) -> Result<(), StepError> {
        let (seed, cpus) = (self.case.seed, self.case.vm.cpus);
        let page = self.page()?;
        let mut ran = Duration::ZERO;
        for number in 0..soak.updates {
            // The deadline applies to each update.
            self.rewind_watchdog();
            self.checked_update(false)?;
            self.resume()?;
            self.acknowledge(&Action::Cont, false)?;
            let boots = self.boots;
            let is_up = |view: &View| view.boots >= boots && view.is_up(cpus);
            let delay = soak.burst(seed, number).after;
            let up = poll::during(delay, || page.read().ok().filter(is_up));
            ran += delay;
            if up.is_some() {
                let text = format!("booted over {} updates, {ran:?} of running", number + 1);
                self.evidence.timeline.say("harness", text);
                return Ok(());
            }
            let stop = self.stop()?;
            self.acknowledge(&stop, true)?;
            // The guest has run since the last observation.
            self.seen = Some(self.observe()?);
            self.forget();
        }
        let what = format!("the guest's boot over {} updates", soak.updates);
        let view = page.read().map(|view| format!("phase {}, boot {}", view.phase, view.boots));
        Err(StepError::Guest { what, limit: ran, seen: view.unwrap_or_default() })
    }
}
