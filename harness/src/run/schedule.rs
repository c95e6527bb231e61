//! Running many cases, a few at a time, in their order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use super::{Options, Report, case};
use crate::scenario::Case;

/// Runs `cases`, `jobs` at a time; `done` sees each report as it comes.
pub fn run(cases: &[Case], jobs: usize, options: &Options, mut done: impl FnMut(Report)) {
    let next = AtomicUsize::new(0);
    let (reports, arriving) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, cases.len().max(1)) {
            let (reports, next) = (reports.clone(), &next);
            scope.spawn(move || {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if reports.send(case::run(case, options)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(reports);
        arriving.iter().for_each(&mut done);
    });
}
