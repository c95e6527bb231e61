//! Runs guests side by side and updates them repeatedly, until a limit or the first failure.

pub mod board;
pub mod cases;
pub mod lines;
pub mod screen;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use board::{SoakProgress, State, VmProgress};

use crate::run::evidence::{folder_name, write_case};
use crate::run::session::soak::{Pace, Progress};
use crate::run::{Options, Report, Verdict, case};
use crate::scenario::{Case, Step};

/// How many more updates a replay does than were done: a timing-dependent failure may come later.
const MORE: u32 = 50;

/// The limits of a soak; it ends at the first that is reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// The most good updates, of all VMs together.
    pub updates: Option<u64>,
    /// The most time.
    pub time: Option<Duration>,
}

/// A soak in progress.
pub struct Soaking {
    limits: Limits,
    began: Instant,
    enough: AtomicBool,
    /// Number of bursts begun.
    begun: AtomicU64,
    board: SoakProgress,
}

impl Soaking {
    /// Creates a soak of `cases`, which have not begun.
    pub fn new(cases: &[Case], limits: Limits) -> Self {
        Self {
            limits,
            began: Instant::now(),
            enough: AtomicBool::new(false),
            begun: AtomicU64::new(0),
            board: SoakProgress::new(cases),
        }
    }

    /// Stops the soak: every VM ends after its current burst.
    pub fn stop(&self) {
        self.enough.store(true, Ordering::Relaxed);
    }

    /// Returns true once it was stopped or its time is over.
    pub fn is_over(&self) -> bool {
        self.enough.load(Ordering::Relaxed)
            || self.limits.time.is_some_and(|time| self.began.elapsed() >= time)
    }

    /// The progress of its VMs.
    pub fn board(&self) -> &SoakProgress {
        &self.board
    }

    /// How long it has run.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Runs `cases`, each in a thread of its own; `tell` is called every `interval`. Returns the
    /// reports in the order of the cases.
    pub fn run(
        &self,
        cases: &[Case],
        options: &Options,
        interval: Duration,
        mut tell: impl FnMut(&Self),
    ) -> Vec<Report> {
        let mut reports: Vec<Option<Report>> = vec![None; cases.len()];
        std::thread::scope(|scope| {
            let (ended, ends) = mpsc::channel();
            for (index, case) in cases.iter().enumerate() {
                let ended = ended.clone();
                scope.spawn(move || {
                    let report = case::run_at(case, options, Some(&Vm { soaking: self, index }));
                    // The receiver waits for all of them, so sending cannot fail.
                    let _ = ended.send((index, report));
                });
            }
            drop(ended);
            let mut next = Instant::now() + interval;
            loop {
                match ends.recv_timeout(next.saturating_duration_since(Instant::now())) {
                    Ok((index, report)) => {
                        let state = match report.verdict {
                            Verdict::Pass => State::Gone,
                            Verdict::Ignored(_) => State::LeftOut,
                            Verdict::Fail(_) | Verdict::Broken(_) => State::Failed,
                        };
                        self.board.set(index, state);
                        if state == State::Failed {
                            self.stop();
                        }
                        if matches!(report.verdict, Verdict::Pass | Verdict::Fail(_)) {
                            self.shorten(&cases[index], index, options);
                        }
                        reports[index] = Some(report);
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        tell(self);
                        next += interval;
                        // Written now in case this process is killed.
                        for (index, case) in cases.iter().enumerate() {
                            if self.board.lane(index).begun > 0 && reports[index].is_none() {
                                self.shorten(case, index, options);
                            }
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
        });
        reports.into_iter().flatten().collect()
    }

    /// Rewrites the case so that `replay` does as many updates as were done, and [`MORE`].
    fn shorten(&self, case: &Case, index: usize, options: &Options) {
        let updates = self.board.lane(index).begun.saturating_add(MORE);
        let mut case = case.clone();
        for step in &mut case.steps {
            if let Step::Soak(soak) = step {
                soak.updates = updates;
            }
        }
        // The verdict reports a folder that cannot be written.
        let _ = write_case(&options.evidence.join(folder_name(&case.name)), &case);
    }
}

/// One VM of a soak.
struct Vm<'a> {
    soaking: &'a Soaking,
    index: usize,
}

impl Pace for Vm<'_> {
    fn wants(&self, done: u32) -> bool {
        let Soaking { limits, begun, board, .. } = self.soaking;
        if self.soaking.is_over() {
            return false;
        }
        let limit = limits.updates.unwrap_or(u64::MAX);
        let next = |begun| (begun < limit).then_some(begun + 1);
        let wanted = begun.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok();
        if wanted {
            board.begin(self.index, done + 1);
        }
        wanted
    }

    fn done(&self, seen: Progress) {
        self.soaking.board.done(self.index, seen);
    }
}

/// Returns the bytes of disk space used below `folder`.
pub fn disk_usage(folder: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => disk_usage(&entry.path()),
            Ok(meta) => meta.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

/// Formats how messages name a VM: its number, guest and size.
pub fn describe(index: usize, lane: &VmProgress) -> String {
    format!("VM {index} ({})", lane.what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_on_updates_covers_all_vms() {
        let cases = cases::cases(&cases::SoakConfig { vms: 2, ..cases::SoakConfig::default() });
        let soaking = Soaking::new(&cases, Limits { updates: Some(3), time: None });
        let vms = [0, 1].map(|index| Vm { soaking: &soaking, index });
        let wanted: Vec<bool> = (0..4).map(|n| vms[n % 2].wants(n as u32 / 2)).collect();
        assert_eq!(wanted, [true, true, true, false]);
        assert_eq!([0, 1].map(|index| soaking.board.lane(index).begun), [2, 1]);
    }

    #[test]
    fn no_burst_begins_once_it_is_over() {
        let cases = cases::cases(&cases::SoakConfig::default());
        let stopped = Soaking::new(&cases, Limits::default());
        assert!(Vm { soaking: &stopped, index: 0 }.wants(0));
        stopped.stop();
        assert!(!Vm { soaking: &stopped, index: 0 }.wants(1));
        let over = Soaking::new(&cases, Limits { updates: None, time: Some(Duration::ZERO) });
        assert!(!Vm { soaking: &over, index: 0 }.wants(0));
    }
}
