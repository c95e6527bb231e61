//! Measures whether a guest notices a refused update: compares the largest gap between its
//! heartbeats with that of an equally long calm time, in which the VMM got no requests, and counts
//! how often its vCPUs' threads went to sleep. Also measures the gap in a calm time for the case as
//! a whole.

use std::time::{Duration, Instant};

use crate::backend::Feature;
use crate::check::gaps::Refusal;
use crate::observe::mailbox::MailboxPage;
use crate::observe::poll::{self, Deadline};
use crate::observe::sleeps;
use crate::run::measure::blackout::Measurement;
use crate::run::session::Session;
use crate::scenario::{Expect, Migrate};

/// The shortest time that is compared: a shorter one has hardly any heartbeats.
const WINDOW: Duration = Duration::from_millis(20);

/// The longest time in which no process can have been started and have answered.
const WITHOUT_A_PROCESS: Duration = Duration::from_millis(5);

/// How long the guest is watched once for the calm gap that its updates are compared with.
const CALM: Duration = Duration::from_millis(50);

/// A time without requests.
pub(super) struct Calm {
    largest_gap: Duration,
    /// Whether no vCPU's thread went to sleep.
    awake: bool,
}

/// The moment before an update is requested.
pub(super) struct Asked {
    pub(super) at: Instant,
    /// How often the vCPUs' threads had gone to sleep.
    sleeps: Option<u64>,
    /// Whether the command may be rehearsed first.
    may_rehearse: bool,
}

impl Session<'_> {
    /// Watches the guest before an update that is to be refused, if the guest runs.
    pub(super) fn calm(&self, migrate: &Migrate) -> Option<Calm> {
        let refused = matches!(migrate.expect, Expect::Refused(_));
        let page = &self.seen.as_ref().filter(|_| refused && self.run_state.is_running())?.page;
        self.calm_for(page, WINDOW)
    }

    fn calm_for(&self, page: &MailboxPage, time: Duration) -> Option<Calm> {
        let before = self.sleeps();
        let largest_gap = self.largest_gap(page, time)?;
        Some(Calm { largest_gap, awake: before.is_some() && self.sleeps() == before })
    }

    /// Notes the moment before an update is requested.
    pub(super) fn asking(&self, migrate: &Migrate) -> Asked {
        let rehearses = self.options.backend.lacks(Feature::Rehearsal).is_none();
        let may_rehearse = rehearses && migrate.rehearsal != Some(false);
        Asked { may_rehearse, sleeps: self.sleeps(), at: Instant::now() }
    }

    /// Ends the measurement of an update that was requested at `asked` and has been refused.
    pub(super) fn measure_refusal(&mut self, calm: Option<Calm>, asked: Asked) {
        let measuring = self.measuring.take();
        let (Some(calm), Some(measuring), Some(seen)) = (calm, measuring, &self.seen) else {
            return;
        };
        // While a process is started for a rehearsal, a vCPU with a page fault may wait for the kernel.
        let rehearsed = asked.may_rehearse && asked.at.elapsed() > WITHOUT_A_PROCESS;
        let slept = self.sleeps().zip(asked.sleeps).filter(|_| !rehearsed);
        let slept = slept.and_then(|(after, before)| after.checked_sub(before));
        spend(WINDOW.saturating_sub(asked.at.elapsed()));
        let during = self.end(measuring, &seen.page);
        let took = asked.at.elapsed();
        // The refusal may have taken longer than the calm time before it: watch for the rest now.
        let rest = took.saturating_sub(WINDOW);
        let after = match rest.is_zero() {
            true => Some(Calm { largest_gap: Duration::ZERO, awake: true }),
            false => self.calm_for(&seen.page, rest),
        };
        if let (Some(during), Some(after)) = (during, after) {
            let sleeps = slept.filter(|_| calm.awake && after.awake);
            let calm = calm.largest_gap.max(after.largest_gap);
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
