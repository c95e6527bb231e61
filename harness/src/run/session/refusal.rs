//! Measures whether a guest notices a refused update: compares the largest gap between its
//! heartbeats with that of an equally long calm time, in which the VMM got no requests, and counts
//! how often its vCPUs' threads went to sleep. Also measures the gap in a calm time for the case as
//! a whole.

use std::time::{Duration, Instant};

use crate::check::gaps::Refusal;
use crate::observe::mailbox::MailboxPage;
use crate::observe::poll::{self, Deadline};
use crate::observe::sleeps;
use crate::run::measure::blackout::Measurement;
use crate::run::session::Session;
use crate::scenario::{Expect, Migrate};

/// The shortest time that is compared: a shorter one has hardly any heartbeats.
const WINDOW: Duration = Duration::from_millis(20);

/// How long the guest is watched once for the calm gap that its updates are compared with.
const CALM: Duration = Duration::from_millis(50);

/// A time without requests.
pub(super) struct Calm {
    largest_gap: Duration,
    /// How often the vCPUs' threads had gone to sleep by its end, if they never did during it.
    sleeps: Option<u64>,
}

impl Session<'_> {
    /// Watches the guest before an update that is to be refused, if the guest runs.
    pub(super) fn calm(&self, migrate: &Migrate) -> Option<Calm> {
        let refused = matches!(migrate.expect, Expect::Refused(_));
        let page = &self.seen.as_ref().filter(|_| refused && self.run_state.is_running())?.page;
        let before = self.sleeps();
        let largest_gap = self.largest_gap(page, WINDOW)?;
        let after = self.sleeps();
        Some(Calm { largest_gap, sleeps: after.filter(|_| after == before) })
    }

    /// Ends the measurement of an update that was requested at `asked` and has been refused.
    pub(super) fn measure_refusal(&mut self, calm: Option<Calm>, asked: Instant) {
        let measuring = self.measuring.take();
        let (Some(calm), Some(measuring), Some(seen)) = (calm, measuring, &self.seen) else {
            return;
        };
        let sleeps = calm.sleeps.and_then(|before| Some(self.sleeps()? - before));
        spend(WINDOW.saturating_sub(asked.elapsed()));
        let during = self.end(measuring, &seen.page);
        let took = asked.elapsed();
        // The refusal may have taken longer than the calm time before it: watch for the rest now.
        let rest = took.saturating_sub(WINDOW);
        let after = match rest.is_zero() {
            true => Some(Duration::ZERO),
            false => self.largest_gap(&seen.page, rest),
        };
        if let (Some(during), Some(after)) = (during, after) {
            let calm = calm.largest_gap.max(after);
            self.calm = self.calm.max(Some(calm));
            self.refused = Some(Refusal { took, calm, during, sleeps });
        }
    }

    /// Measures the calm gap, unless it was measured in this case already.
    pub(super) fn calibrate(&mut self) {
        let page = match &self.seen {
            Some(seen) if self.calm.is_none() && self.run_state.is_running() => seen.page.clone(),
            _ => return,
        };
        self.calm = self.largest_gap(&page, CALM);
    }

    /// Returns how often the vCPUs' threads have gone to sleep so far.
    fn sleeps(&self) -> Option<u64> {
        let cpus = &self.seen.as_ref()?.cpus;
        sleeps::count(self.vm.pid(), cpus.iter().map(|cpu| cpu.thread_id))
    }

    fn largest_gap(&self, page: &MailboxPage, time: Duration) -> Option<Duration> {
        let measuring = Measurement::begin(page, self.options.patience.measure)?;
        spend(time);
        self.end(measuring, page)
    }

    /// Ends a measurement after the next heartbeat of every vCPU: the gap before it counts.
    fn end(&self, measuring: Measurement, page: &MailboxPage) -> Option<Duration> {
        let cpus = self.case.vm.cpus;
        let start = page.read().ok()?.heartbeats(cpus);
        poll::until(Deadline::after(self.options.patience.beat), || {
            let now = page.read().ok()?.heartbeats(cpus);
            start.iter().zip(&now).all(|(a, b)| a != b).then_some(())
        })?;
        measuring.end(page)
    }
}

/// Lets time pass while the guest is being watched.
fn spend(time: Duration) {
    poll::during(time, || None::<()>);
}
