//! A guest watched from the host while something happens to its VMM: for how long it stands still,
//! and how long it then takes to touch all its RAM.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use super::mailbox::{MailboxPage, View};
use super::poll::{self, Deadline};

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The longest time in which the heartbeat of some vCPU was the same.
    pub blackout: Duration,
    /// From the end of that until every vCPU had visited its share of the pages once more.
    pub touched: Option<Duration>,
}

/// One vCPU, as it was seen.
#[derive(Clone, Copy)]
struct Seen {
    heartbeat: u64,
    since: Instant,
    gap: Duration,
    /// When the longest gap ended, and at which page.
    ended: Instant,
    pages: u64,
}

/// Pages that each vCPU of a guest that sweeps over its RAM visits in a sweep; none of another one.
pub fn share(view: &View, cpus: u32) -> Option<u64> {
    let pages = view.ram_bytes / 4096;
    (pages > 0).then(|| pages.div_ceil(u64::from(cpus.max(1))))
}

/// Sweeps are timed together for so long: one alone may be over between two looks.
const TIMED: Duration = Duration::from_millis(20);

/// How long every vCPU takes to visit its share of the pages once; none if it does not in time.
pub fn sweep(page: &MailboxPage, cpus: u32, deadline: Deadline) -> Option<Duration> {
    let first = page.read().ok()?;
    let share = share(&first, cpus)?;
    let began = Instant::now();
    poll::finely(deadline, || {
        let now = page.read().ok()?;
        let elapsed = began.elapsed();
        let both = now.cpus.iter().zip(&first.cpus).take(cpus as usize);
        let slowest = both.map(|(now, first)| now.pages.saturating_sub(first.pages)).min()?;
        let sweeps = slowest as f64 / share as f64;
        (sweeps >= 1.0 && elapsed >= TIMED).then(|| elapsed.div_f64(sweeps))
    })
}

/// Watches until `over` says that it is over and the guest has touched its RAM since; none if
/// nobody says so, or in time.
pub fn watch(
    page: &MailboxPage,
    cpus: u32,
    over: &Receiver<()>,
    deadline: Deadline,
) -> Option<Watched> {
    let first = page.read().ok()?;
    let began = Instant::now();
    let seen = |cpu: &super::mailbox::Cpu| Seen {
        heartbeat: cpu.heartbeat,
        since: began,
        gap: Duration::ZERO,
        ended: began,
        pages: cpu.pages,
    };
    let mut all: Vec<Seen> = first.cpus.iter().take(cpus as usize).map(seen).collect();
    let share = share(&first, cpus);
    let mut is_over = None;
    poll::finely(deadline, || {
        let view = page.read().ok()?;
        let now = Instant::now();
        for (seen, cpu) in all.iter_mut().zip(&view.cpus) {
            seen.look(cpu.heartbeat, cpu.pages, now);
        }
        match over.try_recv() {
            Ok(()) => is_over = Some(now),
            Err(TryRecvError::Disconnected) if is_over.is_none() => return Some(None),
            Err(_) => {}
        }
        let over_at = is_over?;
        let longest = all.iter().max_by_key(|seen| seen.gap)?;
        // Each must have been seen alive afterwards: till then its gap has no end.
        let alive = all.iter().all(|seen| seen.since > over_at);
        let swept = |seen: &Seen, pages: u64| share.is_none_or(|share| pages >= seen.pages + share);
        let done = alive && all.iter().zip(&view.cpus).all(|(seen, cpu)| swept(seen, cpu.pages));
        done.then(|| {
            let touched = share.map(|_| now.saturating_duration_since(longest.ended));
            Some(Watched { blackout: longest.gap, touched })
        })
    })
    .flatten()
}

impl Seen {
    fn look(&mut self, heartbeat: u64, pages: u64, now: Instant) {
        if heartbeat == self.heartbeat {
            return;
        }
        let gap = now.saturating_duration_since(self.since);
        if gap > self.gap {
            (self.gap, self.ended, self.pages) = (gap, now, pages);
        }
        (self.heartbeat, self.since) = (heartbeat, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_time_without_a_beat_counts_from_the_first_look_at_it() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut seen =
            Seen { heartbeat: 1, since: began, gap: Duration::ZERO, ended: began, pages: 0 };
        for (heartbeat, pages, ms) in [(1, 0, 1), (2, 5, 2), (2, 5, 10), (3, 6, 30), (4, 9, 31)] {
            seen.look(heartbeat, pages, at(ms));
        }
        assert_eq!((seen.gap, seen.ended, seen.pages), (Duration::from_millis(28), at(30), 6));
        assert_eq!((seen.heartbeat, seen.since), (4, at(31)));
    }
}
