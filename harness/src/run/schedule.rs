//! Runs many cases in order, a few at a time.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::{Options, Report, case};
use crate::scenario::Case;

/// Runs `cases`, `jobs` at a time; calls `done` with each report as soon as it is ready. After a
/// break no further case begins.
pub fn run(
    cases: &[Case],
    jobs: usize,
    options: &Options,
    done: impl FnMut(Report) -> ControlFlow<()>,
) {
    until(cases, jobs, |case| case::run(case, options), done);
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
    until(items, jobs, work, |result| {
        done(result);
        ControlFlow::Continue(())
    });
}

/// The same, until `done` breaks: then only what has begun is finished. A worker begins the next item
/// when its last result has been judged.
fn until<I: Sync, T: Send>(
    items: &[I],
    jobs: usize,
    work: impl Fn(&I) -> T + Sync,
    mut done: impl FnMut(T) -> ControlFlow<()>,
) {
    let next = AtomicUsize::new(0);
    let (results, arriving) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, items.len().max(1)) {
            let (results, next, work) = (results.clone(), &next, &work);
            scope.spawn(move || {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Its only sender goes with the result: if that is dropped, so is the wait.
                    let (judged, verdict) = mpsc::channel();
                    let sent = results.send((work(item), judged));
                    if sent.is_err() || verdict.recv() != Ok(ControlFlow::Continue(())) {
                        return;
                    }
                }
            });
        }
        drop(results);
        let mut verdict = ControlFlow::Continue(());
        for (result, judged) in arriving {
            if done(result).is_break() {
                verdict = ControlFlow::Break(());
            }
            // A worker waits for this, so it is there.
            let _ = judged.send(verdict);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_begins_after_a_break() {
        let mut seen = Vec::new();
        until(
            &[1, 2, 3, 4],
            1,
            |item| *item,
            |item| {
                seen.push(item);
                if item == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        );
        assert_eq!(seen, [1, 2]);
    }

    #[test]
    fn every_item_is_done_once() {
        let mut seen = Vec::new();
        each(&[1, 2, 3, 4, 5], 3, |item| *item, |item| seen.push(item));
        seen.sort();
        assert_eq!(seen, [1, 2, 3, 4, 5]);
    }
}
