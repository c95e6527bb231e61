//! Compares the kernel's clocks with the TSC: none may step back, or forward beyond what the TSC has
//! counted meanwhile, blackouts included.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::finding::Finding;
use crate::heartbeat::tsc;
use crate::mailbox::{CLOCKS, Mailbox};

/// The clocks, in the order of [`CLOCKS`]. Nothing sets the time or suspends this guest, so that all
/// advance alike.
const IDS: [ClockId; CLOCKS.len()] =
    [ClockId::CLOCK_MONOTONIC, ClockId::CLOCK_BOOTTIME, ClockId::CLOCK_REALTIME];
/// Nanoseconds that a clock may step against the TSC, as in the guest `clock`.
const STEP: i64 = 1_000_000;
/// The inverse of the error that the measured rate of the TSC may have.
const ERROR: i64 = 1000;
/// How long the rate of the TSC is measured.
const CALIBRATION: Duration = Duration::from_millis(500);

/// The latest value that any vCPU has read of each clock.
static LATEST: [AtomicU64; CLOCKS.len()] = [const { AtomicU64::new(0) }; CLOCKS.len()];

/// A clock, read between two reads of the TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    before: u64,
    nanoseconds: u64,
    after: u64,
}

impl Reading {
    fn take(id: ClockId) -> nix::Result<Self> {
        let before = tsc();
        let time = clock_gettime(id)?;
        let after = tsc();
        let nanoseconds = time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64;
        Ok(Self { before, nanoseconds, after })
    }

    /// The most exact of several readings.
    fn take_exact(id: ClockId) -> nix::Result<Self> {
        let mut best = Self::take(id)?;
        for _ in 0..20 {
            let next = Self::take(id)?;
            if next.after - next.before < best.after - best.before {
                best = next;
            }
        }
        Ok(best)
    }
}

/// The rate of the TSC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    nanoseconds_per_tick: f64,
}

impl Rate {
    /// Measures the rate, which takes half a second.
    pub fn measure() -> nix::Result<Self> {
        let first = Reading::take_exact(ClockId::CLOCK_MONOTONIC)?;
        let start = Instant::now();
        while start.elapsed() < CALIBRATION {
            std::thread::sleep(CALIBRATION / 10);
        }
        let last = Reading::take_exact(ClockId::CLOCK_MONOTONIC)?;
        Ok(Self::between(first, last))
    }

    fn between(first: Reading, last: Reading) -> Self {
        let middle = |reading: Reading| reading.before + (reading.after - reading.before) / 2;
        let ticks = middle(last) - middle(first);
        let nanoseconds = last.nanoseconds - first.nanoseconds;
        Self { nanoseconds_per_tick: nanoseconds as f64 / ticks as f64 }
    }

    fn nanoseconds(self, ticks: u64) -> i64 {
        (ticks as f64 * self.nanoseconds_per_tick) as i64
    }
}

/// The clocks as one vCPU sees them.
pub struct Clocks {
    rate: Rate,
    last: [Option<Reading>; CLOCKS.len()],
}

impl Clocks {
    /// Begins to watch the clocks.
    pub fn new(rate: Rate) -> Self {
        Self { rate, last: [None; CLOCKS.len()] }
    }

    /// Compares each clock with its last value, on this vCPU and on all, and notes the largest steps.
    pub fn compare(&mut self, page: &Mailbox) -> Result<(), Finding> {
        for (index, (id, name)) in IDS.into_iter().zip(CLOCKS).enumerate() {
            let latest = LATEST[index].load(SeqCst);
            let now = Reading::take(id).map_err(|e| Finding::call(&format!("read {name}"), e))?;
            LATEST[index].fetch_max(now.nanoseconds, SeqCst);
            if now.nanoseconds < latest {
                let what = format!("ns of {name}: it went back, between two CPUs");
                return Err(Finding::value(latest, now.nanoseconds, what));
            }
            if let Some(last) = self.last[index].replace(now) {
                let step = judge(name, self.rate, last, now)?;
                page.clock_steps[index].fetch_max(step.unsigned_abs(), Relaxed);
            }
        }
        Ok(())
    }
}

/// Returns by how many nanoseconds at least a clock has stepped against the TSC between two readings;
/// the error is what makes it damage.
fn judge(name: &str, rate: Rate, last: Reading, now: Reading) -> Result<i64, Finding> {
    if now.nanoseconds < last.nanoseconds {
        let what = format!("ns of {name}: it went back");
        return Err(Finding::value(last.nanoseconds, now.nanoseconds, what));
    }
    // A TSC that goes back is noticed elsewhere.
    let ticks = |from: u64, to: u64| rate.nanoseconds(to.saturating_sub(from));
    let advance = (now.nanoseconds - last.nanoseconds) as i64;
    let (least, most) = (ticks(last.after, now.before), ticks(last.before, now.after));
    let step = match advance {
        ahead if ahead > most => ahead - most,
        behind if behind < least => behind - least,
        _ => 0,
    };
    if step.abs() <= STEP + most / ERROR {
        return Ok(step);
    }
    let how = if step > 0 { "forward" } else { "back" };
    let what = format!("ns that {name} advanced: it stepped {how} against the TSC");
    Err(Finding::value(if step > 0 { most } else { least } as u64, advance as u64, what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// A TSC of 2 GHz, and a clock that is at 0 when the TSC is.
    const RATE: Rate = Rate { nanoseconds_per_tick: 0.5 };

    fn at(nanoseconds: u64, clock: u64) -> Reading {
        Reading { before: 2 * nanoseconds, nanoseconds: clock, after: 2 * nanoseconds + 200 }
    }

    #[rstest]
    #[case::right(1_000_000, 1_000_050, Ok(0))]
    #[case::within_the_reading(1_000_000, 1_000_100, Ok(0))]
    #[case::small_step(1_000_000, 1_000_350, Ok(200))]
    #[case::small_step_back(1_000_000, 999_650, Ok(-300))]
    #[case::blackout_on_both(900_000_000, 900_000_000, Ok(0))]
    #[case::largest_step(10_000_000, 11_010_150, Ok(1_010_000))]
    #[case::jump(10_000_000, 12_000_000, Err("forward against the TSC"))]
    #[case::blackout_lost(500_000_000, 4_000_000, Err("back against the TSC"))]
    #[case::back(1_000_000, 0, Err("CLOCK_X: it went back"))]
    fn steps_are_measured_against_the_tsc(
        #[case] tsc: u64,
        #[case] clock: u64,
        #[case] expected: Result<i64, &str>,
    ) {
        let start = at(0, 50);
        match (judge("CLOCK_X", RATE, start, at(tsc, clock)), expected) {
            (Ok(step), Ok(expected)) => assert_eq!(step, expected),
            (Err(finding), Err(expected)) => {
                assert!(finding.text.ends_with(expected), "{}", finding.text);
            }
            (judged, _) => panic!("{judged:?}"),
        }
    }

    #[test]
    fn interrupted_reading_is_no_step() {
        let slow = Reading { before: 2_000_000, nanoseconds: 5_000_000, after: 12_000_000 };
        assert_eq!(judge("CLOCK_X", RATE, at(0, 50), slow), Ok(0));
    }

    #[test]
    fn rate_is_that_of_the_middle_of_both_readings() {
        assert_eq!(Rate::between(at(0, 50), at(1_000_000, 1_000_050)), RATE);
    }

    #[test]
    fn clocks_of_this_host_advance_with_its_tsc() {
        let rate = Rate::measure().unwrap();
        let first = Reading::take(IDS[0]).unwrap();
        assert!(judge(CLOCKS[0], rate, first, Reading::take(IDS[0]).unwrap()).is_ok());
    }
}
