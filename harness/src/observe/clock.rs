//! Clocks: one timeline for everything that is recorded, and TSC ticks converted to time.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

/// The origin of all recorded times: when this process first asked for one.
struct Origin {
    instant: Instant,
    wall: SystemTime,
    tsc: u64,
}

fn origin() -> &'static Origin {
    static ORIGIN: OnceLock<Origin> = OnceLock::new();
    ORIGIN.get_or_init(|| Origin { instant: Instant::now(), wall: SystemTime::now(), tsc: tsc() })
}

/// Starts the clocks. The earlier they start, the more accurate the measured TSC rate.
pub fn start() {
    origin();
}

/// Returns the time since the origin.
pub fn now() -> Duration {
    since_start(Instant::now())
}

/// Converts `instant` to time since the origin.
pub fn since_start(instant: Instant) -> Duration {
    instant.saturating_duration_since(origin().instant)
}

/// Converts wall-clock time to time since the origin, for records with timestamps of other
/// programs.
pub fn wall_since_start(wall: SystemTime) -> Duration {
    wall.duration_since(origin().wall).unwrap_or_default()
}

/// Reads the time stamp counter of the current CPU.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC reads a counter and touches no memory; Linux lets every process use it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Converts a difference of two TSC values to time.
///
/// The rate is measured against `CLOCK_MONOTONIC` from the origin to now.
pub fn ticks(difference: u64) -> Duration {
    let origin = origin();
    let elapsed = origin.instant.elapsed().as_secs_f64();
    let counted = tsc().wrapping_sub(origin.tsc) as f64;
    if counted <= 0.0 {
        return Duration::ZERO;
    }
    Duration::try_from_secs_f64(difference as f64 * elapsed / counted).unwrap_or(Duration::MAX)
}
