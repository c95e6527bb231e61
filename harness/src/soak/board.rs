//! The progress of a soak: what its VMs have reported, in constant space.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::run::session::soak::Progress;
use crate::scenario::Case;

/// The state of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not been updated yet.
    Boots,
    /// It is updated again and again.
    Runs,
    /// It has ended as it should.
    Gone,
    /// It cannot be run here.
    LeftOut,
    /// It has failed.
    Failed,
}

impl State {
    /// Its name in the lines printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boots => "booting",
            Self::Runs => "running",
            Self::Gone => "ended",
            Self::LeftOut => "left out",
            Self::Failed => "FAILED",
        }
    }
}

/// The progress of one VM.
#[derive(Clone, Debug)]
pub struct VmProgress {
    /// Its guest and size.
    pub what: String,
    /// Its state.
    pub state: State,
    /// Number of bursts begun.
    pub begun: u32,
    /// Number of good updates.
    pub updates: u32,
    /// Number of updates that were refused or undone, as expected.
    pub setbacks: u32,
    /// Its own memory in KiB, after the first burst with an update and after the newest one.
    pub memory_kib: Option<(u64, u64)>,
    /// The number of its descriptors, after the first burst and after the newest one.
    pub fds: Option<(usize, usize)>,
}

/// The progress of all VMs.
pub struct SoakProgress {
    inner: Mutex<Inner>,
}

struct Inner {
    lanes: Vec<VmProgress>,
    blackouts_us: Option<Histogram<u64>>,
}

/// Percentiles of the blackouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blackouts {
    /// Number of blackouts seen.
    pub count: u64,
    /// Half of them were at most this long.
    pub p50: Duration,
    /// 90 % of them were at most this long.
    pub p90: Duration,
    /// 99 % of them were at most this long.
    pub p99: Duration,
    /// The longest one.
    pub max: Duration,
}

impl SoakProgress {
    /// Creates the board of VMs that have not begun.
    pub fn new(cases: &[Case]) -> Self {
        let s = |count: u32| if count == 1 { "" } else { "s" };
        let lane = |case: &Case| VmProgress {
            what: format!(
                "{}, {} RAM, {} vCPU{}",
                case.vm.guest,
                case.vm.memory,
                case.vm.cpus,
                s(case.vm.cpus)
            ),
            state: State::Boots,
            begun: 0,
            updates: 0,
            setbacks: 0,
            memory_kib: None,
            fds: None,
        };
        let lanes = cases.iter().map(lane).collect();
        // Two significant digits; creation fails only for more than five.
        let blackouts_us = Histogram::new(2).ok();
        Self { inner: Mutex::new(Inner { lanes, blackouts_us }) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records that a VM begins its burst number `begun`.
    pub fn begin(&self, index: usize, begun: u32) {
        self.with(|inner| {
            let lane = &mut inner.lanes[index];
            (lane.begun, lane.state) = (begun, State::Runs);
        });
    }

    /// Records a successful burst.
    pub fn done(&self, index: usize, seen: Progress) {
        self.with(|inner| {
            for blackout in &seen.blackouts {
                let us = u64::try_from(blackout.as_micros()).unwrap_or(u64::MAX);
                if let Some(of) = &mut inner.blackouts_us {
                    // Cannot fail: the histogram resizes itself.
                    let _ = of.record(us);
                }
            }
            let lane = &mut inner.lanes[index];
            (lane.updates, lane.setbacks) = (seen.updates, seen.setbacks);
            // Memory counts from the first update on, as booting needs more.
            if seen.updates > 0 {
                let first = lane.memory_kib.map_or(seen.memory_kib, |(first, _)| first);
                lane.memory_kib = Some((first, seen.memory_kib));
            }
            let first = lane.fds.map_or(seen.fds, |(first, _)| first);
            lane.fds = Some((first, seen.fds));
        });
    }

    /// Sets the state of a VM.
    pub fn set(&self, index: usize, state: State) {
        self.with(|inner| inner.lanes[index].state = state);
    }

    /// Returns the progress of one VM.
    pub fn lane(&self, index: usize) -> VmProgress {
        self.with(|inner| inner.lanes[index].clone())
    }

    /// Returns the progress of all VMs.
    pub fn lanes(&self) -> Vec<VmProgress> {
        self.with(|inner| inner.lanes.clone())
    }

    /// Returns the percentiles of the blackouts that guests saw.
    pub fn blackouts(&self) -> Blackouts {
        self.with(|inner| {
            let Some(of) = &inner.blackouts_us else { return Blackouts::default() };
            let at = |share| Duration::from_micros(of.value_at_quantile(share));
            let max = Duration::from_micros(of.max());
            Blackouts { count: of.len(), p50: at(0.5), p90: at(0.9), p99: at(0.99), max }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::cases::{SoakConfig, cases};

    #[test]
    fn percentiles_cover_all_vms() {
        let board = SoakProgress::new(&cases(&SoakConfig { vms: 2, ..SoakConfig::default() }));
        for n in 1..=100 {
            let blackouts = vec![Duration::from_millis(n)];
            board.done(n as usize % 2, Progress { blackouts, ..Progress::default() });
        }
        let seen = board.blackouts();
        let near = |time: Duration, ms: f64| (time.as_secs_f64() * 1e3 / ms - 1.0).abs() < 0.01;
        assert_eq!(seen.count, 100);
        assert!(near(seen.p50, 50.0) && near(seen.p90, 90.0), "{seen:?}");
        assert!(near(seen.p99, 99.0) && near(seen.max, 100.0), "{seen:?}");
    }
}
