//! How far a copy of RAM is, for `query-migrate`, and whether the rest fits into the downtime.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cpr_qmp::migration::MigrationRamStats;

use crate::memory::PAGE;

/// Counts what the copying thread has done.
#[derive(Debug, Default)]
pub struct Counts {
    /// Pages whose content was written.
    pub normal: AtomicU64,
    /// Pages of zeros.
    pub zeros: AtomicU64,
    /// Bytes written.
    pub bytes: AtomicU64,
}

impl Counts {
    fn done(&self) -> u64 {
        (self.normal.load(Ordering::Relaxed) + self.zeros.load(Ordering::Relaxed)) * PAGE
    }
}

/// The passes of a copy.
#[derive(Debug)]
pub struct Passes {
    total: u64,
    /// Number of the current pass; 0 before the first.
    count: u64,
    began: Instant,
    done_before: u64,
    bytes_before: u64,
    /// Bytes of RAM in the current pass.
    size: u64,
    /// Bytes of RAM that one second of the last pass copied.
    copied_rate: u64,
    /// Bytes that one second of the last pass wrote.
    written_rate: u64,
    /// Pages that the guest wrote in one second of the last pass.
    dirty_rate: u64,
}

impl Passes {
    /// Begins to copy a guest's RAM of `total` bytes.
    pub fn new(total: u64) -> Self {
        Self {
            total,
            count: 0,
            began: Instant::now(),
            done_before: 0,
            bytes_before: 0,
            size: 0,
            copied_rate: 0,
            written_rate: 0,
            dirty_rate: 0,
        }
    }

    /// Returns whether no pass has begun.
    pub fn is_first(&self) -> bool {
        self.count == 0
    }

    /// Records the end of a pass, if one has ended, and that the guest has written `dirty` bytes of
    /// RAM by now, which the next pass copies. Returns the number of that pass.
    pub fn next(&mut self, counts: &Counts, dirty: u64) -> u64 {
        let took = self.began.elapsed();
        let (done, bytes) = (counts.done(), counts.bytes.load(Ordering::Relaxed));
        if self.count > 0 {
            self.copied_rate = per_second(done - self.done_before, took);
            self.written_rate = per_second(bytes - self.bytes_before, took);
            self.dirty_rate = per_second(dirty / PAGE, took);
        }
        self.count += 1;
        self.began = Instant::now();
        (self.done_before, self.bytes_before, self.size) = (done, bytes, dirty);
        self.count
    }

    /// Returns how long `rest` bytes of RAM would take at the rate of the last pass; `None` before
    /// the end of the first.
    pub fn expected(&self, rest: u64) -> Option<Duration> {
        // Not the rate at which RAM was copied: a page of zeros takes no time, one that the guest
        // has just written does.
        (self.written_rate > 0)
            .then(|| Duration::from_secs_f64(rest as f64 / self.written_rate as f64))
    }

    /// Returns what `query-migrate` shows.
    pub fn stats(&self, counts: &Counts) -> MigrationRamStats {
        let (normal, zeros) =
            (counts.normal.load(Ordering::Relaxed), counts.zeros.load(Ordering::Relaxed));
        let transferred = counts.bytes.load(Ordering::Relaxed);
        MigrationRamStats {
            transferred,
            remaining: self.size.saturating_sub(counts.done() - self.done_before),
            total: self.total,
            duplicate: zeros,
            normal,
            normal_bytes: normal * PAGE,
            dirty_pages_rate: self.dirty_rate,
            mbps: self.written_rate as f64 * 8.0 / 1e6,
            dirty_sync_count: self.count,
            page_size: PAGE,
            pages_per_second: self.copied_rate / PAGE,
            precopy_bytes: transferred,
            ..MigrationRamStats::default()
        }
    }
}

fn per_second(amount: u64, took: Duration) -> u64 {
    (amount as f64 / took.as_secs_f64().max(1e-6)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_is_expected_to_take_as_long_as_the_last_pass() {
        let (mut passes, counts) = (Passes::new(100 * PAGE), Counts::default());
        assert_eq!(passes.next(&counts, 100 * PAGE), 1);
        assert_eq!(passes.expected(PAGE), None);
        counts.normal.store(60, Ordering::Relaxed);
        counts.zeros.store(40, Ordering::Relaxed);
        counts.bytes.store(50 * PAGE, Ordering::Relaxed);
        passes.began -= Duration::from_secs(2);
        assert_eq!(passes.next(&counts, 10 * PAGE), 2);
        let expected = passes.expected(10 * PAGE).unwrap().as_millis();
        assert!((400..420).contains(&expected), "{expected} ms");
        counts.normal.store(65, Ordering::Relaxed);
        let stats = passes.stats(&counts);
        assert_eq!((stats.remaining, stats.total), (5 * PAGE, 100 * PAGE));
        assert_eq!((stats.normal, stats.duplicate, stats.dirty_sync_count), (65, 40, 2));
    }
}
