//! How a soak goes: what its VMs have said, in constant room.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::run::soak::Progress;
use crate::scenario::Case;

/// What a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not been updated yet.
    Boots,
    /// It is updated again and again.
    Runs,
    /// It has ended well.
    Gone,
    /// It cannot be run here.
    LeftOut,
    /// Something is wrong with it.
    Failed,
}

impl State {
    /// In lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boots => "boots",
            Self::Runs => "runs",
            Self::Gone => "ended",
            Self::LeftOut => "left out",
            Self::Failed => "FAILED",
        }
    }
}

/// One VM.
#[derive(Clone, Debug)]
pub struct Lane {
    /// Its guest and size.
    pub what: String,
    /// What it is doing.
    pub state: State,
    /// Bursts begun.
    pub begun: u32,
    /// Good updates.
    pub updates: u32,
    /// Updates that had to be refused or undone, and were.
    pub setbacks: u32,
    /// Its own memory in KiB, after the first burst and after the newest one.
    pub memory_kib: Option<(u64, u64)>,
    /// Its descriptors, as booted and now.
    pub fds: Option<(usize, usize)>,
}

/// All VMs.
pub struct Board {
    inner: Mutex<Inner>,
}

struct Inner {
    lanes: Vec<Lane>,
    blackouts_us: Option<Histogram<u64>>,
}

/// Some of the blackouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blackouts {
    /// How many were seen.
    pub count: u64,
    /// Half of them were not longer.
    pub p50: Duration,
    /// Nine of ten were not longer.
    pub p90: Duration,
    /// 99 of 100 were not longer.
    pub p99: Duration,
    /// None was longer.
    pub max: Duration,
}

impl Board {
    /// Nothing has happened yet.
    pub fn new(cases: &[Case]) -> Self {
        let s = |count: u32| if count == 1 { "" } else { "s" };
        let lane = |case: &Case| Lane {
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
        // Two digits of them count. It is there: only more than five are refused.
        let blackouts_us = Histogram::new(2).ok();
        Self { inner: Mutex::new(Inner { lanes, blackouts_us }) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A VM begins its burst number `begun`.
    pub fn begin(&self, index: usize, begun: u32) {
        self.with(|inner| {
            let lane = &mut inner.lanes[index];
            (lane.begun, lane.state) = (begun, State::Runs);
        });
    }

    /// A burst has gone well.
    pub fn done(&self, index: usize, seen: Progress) {
        self.with(|inner| {
            for blackout in &seen.blackouts {
                let us = u64::try_from(blackout.as_micros()).unwrap_or(u64::MAX);
                if let Some(of) = &mut inner.blackouts_us {
                    // One that grows takes everything.
                    let _ = of.record(us);
                }
            }
            let lane = &mut inner.lanes[index];
            (lane.updates, lane.setbacks) = (seen.updates, seen.setbacks);
            // What a VMM needed to boot it need not have again.
            if seen.updates > 0 {
                let first = lane.memory_kib.map_or(seen.memory_kib, |(first, _)| first);
                lane.memory_kib = Some((first, seen.memory_kib));
            }
            let first = lane.fds.map_or(seen.fds, |(first, _)| first);
            lane.fds = Some((first, seen.fds));
        });
    }

    /// What a VM is doing from now on.
    pub fn set(&self, index: usize, state: State) {
        self.with(|inner| inner.lanes[index].state = state);
    }

    /// One VM.
    pub fn lane(&self, index: usize) -> Lane {
        self.with(|inner| inner.lanes[index].clone())
    }

    /// All VMs.
    pub fn lanes(&self) -> Vec<Lane> {
        self.with(|inner| inner.lanes.clone())
    }

    /// The blackouts that guests saw.
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
    use crate::soak::cases::{Wish, cases};

    #[test]
    fn percentiles_are_those_of_all_vms() {
        let board = Board::new(&cases(&Wish { vms: 2, ..Wish::default() }));
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
