//! Watches a vCPU that waits for a timer's interrupt, to judge whether the interrupt is late.
//!
//! The vCPU checks without a pause, so a gap between two checks means that the host did not let it
//! run. That makes no interrupt late; only what the vCPU executes after the due time counts.

/// TSC ticks from which the time between two checks is a gap: some 0.1 ms.
const GAP: u64 = 1 << 18;

/// Returns `passed`, the time between two checks, if it is a gap; else 0.
pub fn gap(passed: u64) -> u64 {
    if passed >= GAP { passed } else { 0 }
}

/// How many of the longest gaps are kept.
const KEPT: usize = 8;

/// What a vCPU has seen since it armed a timer. All times are in TSC ticks.
pub struct Watch {
    due: u64,
    last: u64,
    overdue: u64,
    /// Sum of all gaps.
    descheduled: u64,
    gaps: [u64; KEPT],
}

impl Watch {
    /// The interrupt should come at `due`. `before_arming` is a time before the timer was armed: an
    /// update after that delays the interrupt, so it must be a gap.
    pub fn new(before_arming: u64, due: u64) -> Self {
        Self { due, last: before_arming, overdue: 0, descheduled: 0, gaps: [0; KEPT] }
    }

    /// Checks with interrupts on; `has_fired`: the interrupt has arrived. Returns the time since the
    /// last check.
    pub fn look(&mut self, now: u64, has_fired: bool) -> u64 {
        let passed = self.look_with_interrupts_off(now);
        if self.is_overdue() && !has_fired && passed < GAP {
            self.overdue += passed;
        }
        passed
    }

    /// Checks while the interrupt cannot arrive.
    pub fn look_with_interrupts_off(&mut self, now: u64) -> u64 {
        let passed = now - self.last;
        self.last = now;
        self.descheduled += gap(passed);
        let shortest = self.gaps.iter_mut().min();
        if let Some(shortest) = shortest.filter(|gap| passed >= GAP && passed > **gap) {
            *shortest = passed;
        }
        passed
    }

    /// How long the host did not let the vCPU run.
    pub fn descheduled(&self) -> u64 {
        self.descheduled
    }

    /// Whether the due time was over at the last check.
    pub fn is_overdue(&self) -> bool {
        self.last > self.due
    }

    /// How long the vCPU has executed since the due time, with interrupts on.
    pub fn overdue(&self) -> u64 {
        self.overdue
    }

    /// Sum of the gaps that may have been the blackouts of updates: the longest, and those at least
    /// half as long. A timer that is saved and restored stands still meanwhile.
    pub fn blackouts(&self) -> u64 {
        let longest = self.gaps.iter().copied().max().unwrap_or(0);
        self.gaps.iter().filter(|gap| **gap >= longest / 2).sum()
    }
}
