//! Runs many cases in order, a few at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::{Options, Report, case};
use crate::scenario::Case;

/// Runs `cases`, `jobs` at a time; calls `done` with each report as soon as it is ready.
pub fn run(cases: &[Case], jobs: usize, options: &Options, done: impl FnMut(Report)) {
    each(cases, jobs, |case| case::run(case, options), done);
}

/// Runs each of `cases` on two VMMs, `jobs` at a time; calls `done` with both reports.
pub fn pairs(
    cases: &[Case],
    jobs: usize,
    first: &Options,
    second: &Options,
    done: impl FnMut((Report, Report)),
) {
    each(cases, jobs, |case| case::run_both(case, first, second), done);
}

/// Does `work` for each of `items`, `jobs` at a time; calls `done` with each result as soon as it
/// is ready.
pub fn each<I: Sync, T: Send>(
    items: &[I],
    jobs: usize,
    work: impl Fn(&I) -> T + Sync,
    mut done: impl FnMut(T),
) {
    let next = AtomicUsize::new(0);
    let (results, arriving) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            let (results, next, work) = (results.clone(), &next, &work);
            scope.spawn(move || {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if results.send(work(item)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(results);
        arriving.into_iter().for_each(&mut done);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_done_once() {
        let mut seen = Vec::new();
        each(&[1, 2, 3, 4, 5], 3, |item| *item, |item| seen.push(item));
        seen.sort();
        assert_eq!(seen, [1, 2, 3, 4, 5]);
    }
}
