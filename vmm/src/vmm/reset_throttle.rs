//! Throttles a guest that resets itself over and over, so that it floods neither events nor log and
//! none have to be dropped. Its vCPU stands still in the meantime, as it does anyway until the
//! reset is carried out.

use std::time::{Duration, Instant};

use crate::devices::DeviceRequest;
use crate::vcpu::{GuestEvent, GuestEventKind};

/// Number of resets allowed at once, as several processors or an impatient boot loader cause them.
const BURST: u32 = 16;
/// Interval between resets after that.
const RESET_EVERY: Duration = Duration::from_millis(250);
/// Interval between log lines about resets.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    burst: u32,
    every: Duration,
    left: u32,
    filled: Instant,
}

impl Bucket {
    fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, left: burst, filled: Instant::now() }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled);
        let new = (passed.as_nanos() / self.every.as_nanos()).min(self.burst.into()) as u32;
        self.left = (self.left + new).min(self.burst);
        self.filled = if self.left == self.burst { now } else { self.filled + self.every * new };
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        true
    }
}

/// Limits how often a guest may reset itself.
#[derive(Debug)]
pub(super) struct ResetThrottle {
    resets: Bucket,
    lines: Bucket,
    /// Log lines about the throttling itself.
    told: Bucket,
    /// Number of lines suppressed since the last logged one.
    unlogged: u64,
    /// A reset is waiting.
    waits: bool,
}

impl ResetThrottle {
    pub fn new() -> Self {
        let resets = Bucket::new(BURST, RESET_EVERY);
        let (lines, told) = (Bucket::new(BURST, LINE_EVERY), Bucket::new(1, LINE_EVERY));
        Self { resets, lines, told, unlogged: 0, waits: false }
    }

    /// Returns whether `event` may be handled now; if not, it stays queued until
    /// [`time_left`](Self::time_left) has passed.
    pub fn admits(&mut self, event: &GuestEvent) -> bool {
        self.admits_at(event, Instant::now())
    }

    fn admits_at(&mut self, event: &GuestEvent, now: Instant) -> bool {
        if !is_reset(event) || self.resets.take(now) {
            return true;
        }
        if !std::mem::replace(&mut self.waits, true) && self.told.take(now) {
            let every_ms = RESET_EVERY.as_millis() as u64;
            tracing::warn!(vcpu = event.vcpu, every_ms, "guest_resets_slowed_down");
        }
        false
    }

    /// Starts a new round, in which all events are checked again.
    pub fn look_again(&mut self) {
        self.waits = false;
    }

    /// Returns how long until a waiting reset can be carried out; `None` if none is waiting.
    pub fn time_left(&self) -> Option<Duration> {
        let at = self.resets.filled + self.resets.every;
        self.waits.then(|| at.saturating_duration_since(Instant::now()))
    }

    /// Returns how many log lines were suppressed before this one; `None` if it is suppressed too.
    pub fn logs(&mut self) -> Option<u64> {
        if self.lines.take(Instant::now()) {
            return Some(std::mem::take(&mut self.unlogged));
        }
        self.unlogged += 1;
        None
    }
}

fn is_reset(event: &GuestEvent) -> bool {
    matches!(
        event.kind,
        GuestEventKind::TripleFault { .. } | GuestEventKind::Device(DeviceRequest::Reset)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: GuestEventKind) -> GuestEvent {
        GuestEvent { vcpu: 0, kind }
    }

    #[test]
    fn resets_are_limited_to_a_burst_and_a_rate() {
        let mut throttle = ResetThrottle::new();
        let began = Instant::now();
        let fault = event(GuestEventKind::TripleFault { rip: 0 });
        let reset = event(GuestEventKind::Device(DeviceRequest::Reset));
        let mut admitted = 0;
        for ms in 0..10_000 {
            let now = began + Duration::from_millis(ms);
            admitted += u32::from(throttle.admits_at(&fault, now));
            admitted += u32::from(throttle.admits_at(&reset, now));
        }
        assert!((BURST + 39..=BURST + 41).contains(&admitted), "{admitted}");
        assert!(throttle.waits && throttle.time_left().is_some());
        let later = began + Duration::from_secs(60);
        assert_eq!((0..100).filter(|_| throttle.admits_at(&fault, later)).count(), 16);
        throttle.look_again();
        assert_eq!(throttle.time_left(), None);
    }

    #[test]
    fn other_events_are_not_throttled() {
        let mut throttle = ResetThrottle::new();
        let exit = event(GuestEventKind::Device(DeviceRequest::Exit(1)));
        assert!((0..1000).all(|_| throttle.admits(&exit)));
        assert_eq!(throttle.time_left(), None);
    }

    #[test]
    fn suppressed_lines_are_counted() {
        let mut throttle = ResetThrottle::new();
        assert!((0..BURST).all(|_| throttle.logs() == Some(0)));
        assert!((0..5).all(|_| throttle.logs().is_none()));
        throttle.lines.left = 1;
        assert_eq!(throttle.logs(), Some(5));
    }
}
