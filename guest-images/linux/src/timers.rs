//! Counts the expirations of periodic timers: none may be lost or added, whatever stops the guest.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::sys::signal::{SigEvent, SigSet, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::sys::timerfd::{self, ClockId, TimerFd, TimerFlags};
use nix::time::{ClockId as Clock, clock_gettime};
use nix::unistd::gettid;

use crate::finding::Finding;

/// The signal of the POSIX timer.
pub const SIGNAL: Signal = Signal::SIGALRM;

/// The count of one timer, in nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug)]
struct Count {
    name: &'static str,
    start: u64,
    interval: u64,
    total: u64,
}

impl Count {
    fn new(name: &'static str, start: u64, interval: Duration) -> Self {
        Self { name, start, interval: interval.as_nanos() as u64, total: 0 }
    }

    /// When the first expiration is due.
    fn first(&self) -> TimeSpec {
        TimeSpec::from_duration(Duration::from_nanos(self.start + self.interval))
    }

    fn interval(&self) -> TimeSpec {
        TimeSpec::from_duration(Duration::from_nanos(self.interval))
    }

    /// Adds what the kernel counted at an instant between `before` and `after`, and checks it
    /// against the time.
    fn add(&mut self, expired: u64, before: u64, after: u64) -> Result<(), Finding> {
        self.total += expired;
        let due = |at: u64| at.saturating_sub(self.start) / self.interval;
        let (least, most) = (due(before), due(after));
        if (least..=most).contains(&self.total) {
            return Ok(());
        }
        let (name, how) = (self.name, if self.total < least { "lost" } else { "added" });
        let expected = if self.total < least { least } else { most };
        Err(Finding::value(expected, self.total, format!("expirations of a {name}, some {how}")))
    }
}

fn now() -> Result<u64, Finding> {
    let time = clock_gettime(Clock::CLOCK_MONOTONIC);
    let time = time.map_err(|e| Finding::call("read CLOCK_MONOTONIC", e))?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// A timer that is read as a file.
pub struct TimerFile {
    file: File,
    count: Count,
}

impl TimerFile {
    /// Starts a timer.
    pub fn start(interval: Duration) -> Result<Self, Finding> {
        let count = Count::new("timerfd", now()?, interval);
        let wrong = |e| Finding::call("start a timerfd", e);
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::empty()).map_err(wrong)?;
        let expiration = timerfd::Expiration::IntervalDelayed(count.first(), count.interval());
        let flags = timerfd::TimerSetTimeFlags::TFD_TIMER_ABSTIME;
        timer.set(expiration, flags).map_err(wrong)?;
        let file = timer.as_fd().try_clone_to_owned().map(|fd: OwnedFd| File::from(fd));
        Ok(Self { file: file.map_err(|e| Finding::call("duplicate a timerfd", e))?, count })
    }

    /// Waits for the next expiration and checks the count.
    pub fn round(&mut self) -> Result<(), Finding> {
        let mut expired = [0; 8];
        let before = now()?;
        self.file.read_exact(&mut expired).map_err(|e| Finding::call("read a timerfd", e))?;
        self.count.add(u64::from_le_bytes(expired), before, now()?)
    }
}

/// A POSIX timer, which sends a signal to the thread that started it.
pub struct PosixTimer {
    timer: Timer,
    count: Count,
}

impl PosixTimer {
    /// Starts a timer. [`SIGNAL`] must be blocked.
    pub fn start(interval: Duration) -> Result<Self, Finding> {
        let count = Count::new("POSIX timer", now()?, interval);
        let wrong = |e| Finding::call("start a POSIX timer", e);
        let thread_id = gettid().as_raw();
        let notify = SigevNotify::SigevThreadId { signal: SIGNAL, thread_id, si_value: 0 };
        let mut timer = Timer::new(Clock::CLOCK_MONOTONIC, SigEvent::new(notify)).map_err(wrong)?;
        let expiration = Expiration::IntervalDelayed(count.first(), count.interval());
        timer.set(expiration, TimerSetTimeFlags::TFD_TIMER_ABSTIME).map_err(wrong)?;
        Ok(Self { timer, count })
    }

    /// Waits for the next signal and checks the count, with those that came while it was pending.
    pub fn round(&mut self) -> Result<(), Finding> {
        let before = now()?;
        let wait = SigSet::from(SIGNAL).wait();
        wait.map_err(|e| Finding::call("wait for a signal", e))?;
        self.count.add(1 + self.timer.overruns() as u64, before, now()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_nanos(100);

    #[test]
    fn expirations_agree_with_the_time() {
        let mut count = Count::new("timer", 1000, INTERVAL);
        assert_eq!(count.add(1, 1050, 1101), Ok(()));
        // A blackout: all that were due are counted at once.
        assert_eq!(count.add(50, 1150, 6199), Ok(()));
        assert_eq!(count.add(1, 6200, 6201), Ok(()));
    }

    #[test]
    fn lost_and_added_expirations_are_noticed() {
        let text = |expired, before, after| {
            let mut count = Count::new("timer", 1000, INTERVAL);
            let finding = count.add(expired, before, after).unwrap_err();
            (finding.report.expected, finding.report.found, finding.text)
        };
        let lost = "expirations of a timer, some lost".to_owned();
        assert_eq!(text(4, 1500, 1510), (5, 4, lost));
        let added = "expirations of a timer, some added".to_owned();
        assert_eq!(text(6, 1500, 1510), (5, 6, added));
    }

    #[test]
    fn timers_of_this_host_count_exactly() {
        SigSet::from(SIGNAL).thread_block().unwrap();
        let interval = Duration::from_micros(700);
        let mut file = TimerFile::start(interval).unwrap();
        let mut posix = PosixTimer::start(interval).unwrap();
        for _ in 0..20 {
            assert_eq!(file.round(), Ok(()));
            assert_eq!(posix.round(), Ok(()));
        }
    }
}
