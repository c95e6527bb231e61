//! Watches a guest from the host while something happens to its VMM: measures how long it stands
//! still, and how long it then takes to touch all its RAM.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use super::mailbox::{Cpu, MailboxPage, View};
use super::poll::{self, Deadline};

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// The longest time without a new heartbeat of some vCPU.
    pub blackout: Duration,
    /// The blackout as measured by the guest, if it was asked to.
    pub guest: Option<Duration>,
    /// Time from the end of the blackout until every vCPU had visited its share of the pages again.
    pub touched: Option<Duration>,
}

/// What was seen of one vCPU.
#[derive(Clone, Copy)]
struct Seen {
    heartbeat: u64,
    since: Instant,
    gap: Duration,
    /// When the longest gap ended, and at which page.
    ended: Instant,
    pages: u64,
}

/// Returns the pages that each vCPU visits in a sweep; `None` if the guest does not sweep its RAM.
pub fn share(view: &View, cpus: u32) -> Option<u64> {
    let pages = view.ram_bytes / 4096;
    (pages > 0).then(|| pages.div_ceil(u64::from(cpus.max(1))))
}

/// Whether every vCPU has finished `sweeps` sweeps that began after `first` was seen; the sweep
/// that was under way then does not count.
pub fn swept(first: &View, now: &View, cpus: u32, sweeps: u64) -> bool {
    let all = sweeps + 1;
    // The slowest vCPU determines how many sweeps are finished; the others may be ahead.
    let each = share(first, cpus).is_none_or(|share| {
        let mut both = now.cpus.iter().zip(&first.cpus).take(cpus as usize);
        both.all(|(now, first)| now.pages.saturating_sub(first.pages) >= all * share)
    });
    each && now.sweeps >= first.sweeps + all
}

/// Shortest time over which sweeps are timed: a single one may be over between two looks.
const TIMED: Duration = Duration::from_millis(20);

/// Measures how long every vCPU takes to visit its share of the pages once; `None` if it does not
/// within the deadline.
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

/// Watches until `over` signals the end and the guest has touched its RAM since; `None` if the
/// signal never comes or the deadline passes.
pub fn watch(
    page: &MailboxPage,
    cpus: u32,
    over: &Receiver<()>,
    deadline: Deadline,
) -> Option<Watched> {
    let mut watching = Watching::new(&page.read().ok()?, cpus, Instant::now());
    let mut is_over = false;
    poll::finely(deadline, || {
        let view = page.read().ok()?;
        let now = Instant::now();
        match over.try_recv() {
            Ok(()) => is_over = true,
            Err(TryRecvError::Disconnected) if !is_over => return Some(None),
            Err(_) => {}
        }
        watching.look(&view, now, is_over).map(Some)
    })
    .flatten()
}

/// The state of a watch: all vCPUs as last seen.
struct Watching {
    all: Vec<Seen>,
    share: Option<u64>,
    over_at: Option<Instant>,
    frozen: Option<Frozen>,
}

/// What was seen until every vCPU was alive again after the end. Later gaps, while a guest with
/// much RAM sweeps it, are not caused by the update.
struct Frozen {
    all: Vec<Seen>,
    guest: Option<Duration>,
}

impl Watching {
    fn new(first: &View, cpus: u32, began: Instant) -> Self {
        let seen = |cpu: &Cpu| Seen {
            heartbeat: cpu.heartbeat,
            since: began,
            gap: Duration::ZERO,
            ended: began,
            pages: cpu.pages,
        };
        Self {
            all: first.cpus.iter().take(cpus as usize).map(seen).collect(),
            share: share(first, cpus),
            over_at: None,
            frozen: None,
        }
    }

    /// Takes one look; returns the result once it is complete.
    fn look(&mut self, view: &View, now: Instant, is_over: bool) -> Option<Watched> {
        for (seen, cpu) in self.all.iter_mut().zip(&view.cpus) {
            seen.look(cpu.heartbeat, cpu.pages, now);
        }
        if is_over && self.over_at.is_none() {
            self.over_at = Some(now);
        }
        let over_at = self.over_at?;
        // Each vCPU must have been seen alive since: until then its gap is open.
        if self.frozen.is_none() && self.all.iter().all(|seen| seen.since > over_at) {
            self.frozen = Some(Frozen { all: self.all.clone(), guest: view.largest_gap() });
        }
        let Frozen { all, guest } = self.frozen.as_ref()?;
        let longest = all.iter().max_by_key(|seen| seen.gap)?;
        let swept =
            |seen: &Seen, pages: u64| self.share.is_none_or(|share| pages >= seen.pages + share);
        let done = all.iter().zip(&view.cpus).all(|(seen, cpu)| swept(seen, cpu.pages));
        done.then(|| Watched {
            blackout: longest.gap,
            guest: *guest,
            touched: self.share.map(|_| now.saturating_duration_since(longest.ended)),
        })
    }
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
    fn the_longest_gap_counts_from_the_first_sight_of_its_heartbeat() {
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

    /// One vCPU that has carried out the request to reset its gaps, 4 pages of RAM.
    fn view(heartbeat: u64, pages: u64, gap: u64) -> View {
        let cpu = Cpu { heartbeat, gap, gap_ack: 1, online: true, pages };
        View {
            ready: true,
            layout: 0,
            phase: 0,
            name: String::new(),
            boots: 1,
            cpus_online: 1,
            marker: 0,
            gap_request: 1,
            sweeps: 0,
            ram_bytes: 4 * 4096,
            damage: None,
            unavailable: String::new(),
            lateness: 0,
            clock_steps: [0; 3],
            cpus: vec![cpu],
        }
    }

    #[test]
    fn only_sweeps_that_began_later_count() {
        // In the middle of the sweep after the fifth.
        let first = View { sweeps: 5, ..view(1, 22, 0) };
        let after = |sweeps, pages| View { sweeps, ..view(2, pages, 0) };
        for (sweeps, pages, done) in [(6, 24, false), (7, 28, false), (7, 29, false), (7, 30, true)]
        {
            assert_eq!(swept(&first, &after(sweeps, pages), 1, 1), done, "{sweeps}, {pages}");
        }
        // A guest that does not count pages.
        let plain = |sweeps| View { sweeps, ram_bytes: 0, ..view(1, 0, 0) };
        assert_eq!([6, 7].map(|sweeps| swept(&plain(5), &plain(sweeps), 1, 1)), [false, true]);
    }

    #[test]
    fn a_gap_after_the_first_heartbeat_since_the_update_does_not_count() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let mut watching = Watching::new(&view(1, 0, 0), 1, began);
        // Still for 10 ms, over at 11 ms, alive at 12 ms; then still for 30 ms, and swept.
        let looks = [(1, 0, 0, 5, false), (2, 0, 1000, 10, false), (3, 1, 1000, 11, true)];
        for (heartbeat, pages, gap, ms, over) in looks.into_iter().chain([(4, 2, 1000, 12, true)]) {
            assert_eq!(watching.look(&view(heartbeat, pages, gap), at(ms), over), None);
        }
        let watched = watching.look(&view(5, 9, 1 << 40), at(42), true).unwrap();
        let ms = Duration::from_millis;
        assert_eq!((watched.blackout, watched.touched), (ms(10), Some(ms(32))));
        assert!(watched.guest.unwrap() < ms(1), "{watched:?}");
    }

    #[test]
    fn a_guest_that_was_not_asked_reports_no_gap() {
        assert_eq!(View { gap_request: 2, ..view(1, 0, 5) }.largest_gap(), None);
    }
}
