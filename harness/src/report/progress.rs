//! The progress of a run: what runs, what failed, and how long it may still take.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::run::rounds::without_round;

/// The progress of a run.
#[derive(Default)]
pub struct Progress {
    /// Cases that run in parallel.
    jobs: usize,
    /// How long cases took in an earlier run.
    known: BTreeMap<String, Duration>,
    /// Cases that have not ended; the sum of what is known of them, and the number of the others.
    cases_left: usize,
    known_left: Duration,
    unknown_left: usize,
    /// The cases that run, and since when.
    running: BTreeMap<String, Instant>,
    /// How many have ended, failed, and how long they took together.
    ended: usize,
    failed: usize,
    took: Duration,
}

impl Progress {
    /// Creates the progress of a run of `cases` in `rounds`; `known` are the durations of cases in an
    /// earlier run.
    pub fn new<'a>(
        cases: impl Iterator<Item = &'a str>,
        rounds: usize,
        jobs: usize,
        known: BTreeMap<String, Duration>,
    ) -> Self {
        let mut progress = Self { jobs, known, ..Self::default() };
        let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
        for case in cases {
            progress.cases_left = progress.cases_left.saturating_add(rounds as usize);
            match progress.known.get(case) {
                Some(took) => {
                    let all = took.saturating_mul(rounds);
                    progress.known_left = progress.known_left.saturating_add(all);
                }
                None => {
                    progress.unknown_left = progress.unknown_left.saturating_add(rounds as usize);
                }
            }
        }
        progress
    }

    /// Notes that a case began.
    pub fn began(&mut self, case: &str, now: Instant) {
        self.running.insert(case.to_owned(), now);
    }

    /// Notes that a case ended.
    pub fn ended(&mut self, case: &str, took: Duration, failed: bool) {
        self.running.remove(case);
        self.ended += 1;
        self.cases_left = self.cases_left.saturating_sub(1);
        self.failed += usize::from(failed);
        self.took += took;
        match self.known.get(without_round(case)) {
            Some(known) => self.known_left = self.known_left.saturating_sub(*known),
            None => self.unknown_left = self.unknown_left.saturating_sub(1),
        }
    }

    /// Estimates how long the run may still take, from how long the cases took in an earlier run, or
    /// from the mean of this one.
    fn left(&self, now: Instant) -> Option<Duration> {
        let mean = self.took.checked_div(u32::try_from(self.ended).ok()?);
        let unknown = match self.unknown_left {
            0 => Duration::ZERO,
            left => mean?.saturating_mul(u32::try_from(left).ok()?),
        };
        let expected = |case: &str| self.known.get(without_round(case)).copied().or(mean);
        // Not more than expected: a case that takes longer says nothing about the others.
        let done = self.running.iter().map(|(case, began)| {
            expected(case).unwrap_or_default().min(now.saturating_duration_since(*began))
        });
        let work = (self.known_left + unknown).saturating_sub(done.sum());
        work.checked_div(u32::try_from(self.jobs.min(self.cases_left).max(1)).ok()?)
    }

    /// Formats the progress.
    pub fn line(&self, now: Instant) -> String {
        let mut parts = Vec::new();
        if self.failed > 0 {
            parts.push(format!("{} failed", self.failed));
        }
        if let Some(left) = self.left(now) {
            parts.push(format!("about {} left", in_short(left)));
        }
        if let Some((case, began)) = self.running.iter().min_by_key(|(_, began)| **began) {
            let age = now.saturating_duration_since(*began);
            parts.push(format!("longest: {case} {}", in_short(age)));
        }
        parts.join(", ")
    }
}

/// Formats a duration in two units at most.
fn in_short(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3600 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_from_an_earlier_run_or_from_the_mean() {
        let seconds = Duration::from_secs;
        let began = Instant::now();
        let known = [("a".to_owned(), seconds(100)), ("b".to_owned(), seconds(20))];
        let mut progress =
            Progress::new(["a", "b", "c", "d"].into_iter(), 1, 2, known.into_iter().collect());
        // Nothing is known of `c` and `d`.
        assert_eq!(progress.line(began), "");
        progress.began("a", began);
        progress.began("b", began + seconds(1));
        progress.ended("b", seconds(20), true);
        progress.began("c", began + seconds(21));
        // 100 s + 2 * 20 s, less the 30 s and 9 s that have passed, on two workers.
        let line = "1 failed, about 50 s left, longest: a 30 s";
        assert_eq!(progress.line(began + seconds(30)), line);
        // A case that takes longer than expected does not make the rest shorter.
        let line = "1 failed, about 10 s left, longest: a 8 min 20 s";
        assert_eq!(progress.line(began + seconds(500)), line);
        progress.ended("a", seconds(580), false);
        progress.ended("c", seconds(600), false);
        assert_eq!(progress.line(began + seconds(700)), "1 failed, about 6 min 40 s left");
        assert_eq!(in_short(seconds(7320)), "2 h 2 min");
    }

    #[test]
    fn rounds_multiply_what_is_left() {
        let known = [("a".to_owned(), Duration::from_secs(10))].into_iter().collect();
        let mut progress = Progress::new(["a"].into_iter(), 3, 1, known);
        assert_eq!(progress.line(Instant::now()), "about 30 s left");
        progress.ended("a@2", Duration::from_secs(10), false);
        assert_eq!(progress.line(Instant::now()), "about 20 s left");
    }
}
