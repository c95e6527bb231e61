//! The host's TSC, from which a guest's differs by an offset. A reboot of the host resets it.

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::migration::cpr::monotonic::monotonic_ns;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How long to measure the TSC's rate. Measured to 1 us, an hour then counts to 0.2 s.
const MEASURED: Duration = Duration::from_millis(20);

/// The host's TSC and time at one moment of one boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTsc {
    /// Identifies the boot; `None` without `/proc`.
    boot_id: Option<String>,
    tsc: u64,
    /// Nanoseconds since 1970.
    realtime_ns: u64,
}

impl HostTsc {
    /// Reads both clocks.
    pub fn now() -> Self {
        let boot_id = std::fs::read_to_string(BOOT_ID).ok().map(|id| id.trim().to_owned());
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { boot_id, tsc: tsc(), realtime_ns: since_1970.as_nanos() as u64 }
    }

    /// Creates a value with every field filled, for the golden section.
    #[cfg(test)]
    pub fn filled() -> Self {
        Self { boot_id: Some("boot".to_owned()), tsc: 1, realtime_ns: 2 }
    }

    /// Returns by how much a guest's TSC offset must grow, if `now` is another boot of the host, so
    /// that the guest's TSC has counted on since `self`. `rate` measures ticks per second.
    pub fn offset_growth(&self, now: &Self, rate: impl FnOnce() -> u64) -> Option<u64> {
        if self.boot_id == now.boot_id {
            return None;
        }
        let elapsed = now.realtime_ns.saturating_sub(self.realtime_ns);
        let ticks = u128::from(elapsed) * u128::from(rate()) / 1_000_000_000;
        Some(self.tsc.wrapping_add(ticks as u64).wrapping_sub(now.tsc))
    }
}

/// Measures the TSC's rate in ticks per second.
pub fn measure_rate() -> u64 {
    let (from, began) = (tsc(), monotonic_ns());
    std::thread::sleep(MEASURED);
    let (ticks, ns) = (tsc().wrapping_sub(from), monotonic_ns().saturating_sub(began).max(1));
    (u128::from(ticks) * 1_000_000_000 / u128::from(ns)) as u64
}

fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has a TSC, and Linux lets user space read it.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(boot: &str, tsc: u64, seconds: u64) -> HostTsc {
        HostTsc { boot_id: Some(boot.to_owned()), tsc, realtime_ns: seconds * 1_000_000_000 }
    }

    #[test]
    fn same_boot_keeps_the_offset() {
        let saved = host("a", 1000, 5);
        assert_eq!(saved.offset_growth(&host("a", 9000, 6), || unreachable!()), None);
        assert_eq!(HostTsc::now().offset_growth(&HostTsc::now(), || unreachable!()), None);
    }

    #[test]
    fn guest_tsc_counts_on_over_a_reboot() {
        const RATE: u64 = 2_000_000_000;
        let saved = host("a", 50_000_000_000, 100);
        // 30 s later, 10 s after a boot.
        let now = host("b", 10 * RATE, 130);
        let (offset, growth) = (7_u64.wrapping_neg(), saved.offset_growth(&now, || RATE).unwrap());
        let guest = |host: &HostTsc, offset: u64| host.tsc.wrapping_add(offset);
        let counted = guest(&now, offset.wrapping_add(growth)) - guest(&saved, offset);
        assert_eq!(counted, 30 * RATE);
        // A clock that was set back does not set the TSC back.
        let growth = saved.offset_growth(&host("b", 1, 50), || RATE).unwrap();
        assert_eq!(guest(&host("b", 1, 50), offset.wrapping_add(growth)), guest(&saved, offset));
    }

    #[test]
    fn rate_is_that_of_a_cpu() {
        assert!((100_000_000..20_000_000_000).contains(&measure_rate()));
    }
}
