//! How long an update may stop the guest: the parameter `x-max-downtime`.

use std::fmt;
use std::time::Duration;

use cpr_qmp::migration::MigrationParameters;

use super::monotonic::monotonic_ns;
use crate::migration::status::Blackout;

/// The longest that an update may stop the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxDowntime(Duration);

/// An update would stop the guest for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an update is expected to stop the guest for {}, {because}; x-max-downtime is {}: raise it, or set \
     it to 0 for no limit",
    Millis(*.expected),
    Millis(*.limit)
)]
pub struct TooLong {
    expected: Duration,
    because: Because,
    limit: Duration,
}

/// What an expectation is based on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Because {
    Last,
    SlowerRehearsal,
}

/// An update has stopped the guest for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the guest has been stopped for {} of the {} that x-max-downtime allows: too little is left for the \
     new VMM",
    Millis(*.stopped),
    Millis(*.limit)
)]
pub struct Exceeded {
    stopped: Duration,
    limit: Duration,
}

impl MaxDowntime {
    /// Returns the limit that the parameters set, if any.
    pub fn of(parameters: &MigrationParameters) -> Option<Self> {
        let ms = parameters.x_max_downtime.filter(|ms| *ms > 0)?;
        Some(Self(Duration::from_millis(ms)))
    }

    /// Checks that an update whose rehearsal took `rehearsal` can be expected to stay within the
    /// limit: it takes as long as the `last` one, and longer in proportion to their rehearsals.
    pub fn check(self, last: Blackout, rehearsal: Option<Duration>) -> Result<(), TooLong> {
        let Blackout { downtime, rehearsal: then } = last;
        let slower = match (then, rehearsal) {
            (Some(then), Some(now)) if !then.is_zero() => now.div_duration_f64(then).max(1.0),
            _ => 1.0,
        };
        let expected = downtime.mul_f64(slower.min(MOST));
        let because = if slower > 1.0 { Because::SlowerRehearsal } else { Because::Last };
        match expected > self.0 {
            true => Err(TooLong { expected, because, limit: self.0 }),
            false => Ok(()),
        }
    }

    /// Returns its end for a guest that was stopped at `paused_ns` (`CLOCK_MONOTONIC`, nanoseconds).
    pub fn end_ns(self, paused_ns: u64) -> u64 {
        let limit = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        paused_ns.saturating_add(limit)
    }

    /// Returns what is left of it for a guest that was stopped at `paused_ns` (`CLOCK_MONOTONIC`).
    pub fn left(self, paused_ns: u64) -> Result<Duration, Exceeded> {
        let stopped = Duration::from_nanos(monotonic_ns().saturating_sub(paused_ns));
        let left = self.0.checked_sub(stopped).filter(|left| *left >= LEAST);
        left.ok_or(Exceeded { stopped, limit: self.0 })
    }
}

/// The most that a slow rehearsal counts: a host that was busy for a moment says little.
const MOST: f64 = 10.0;

/// With less left, the new process would have no time for anything.
const LEAST: Duration = Duration::from_millis(1);

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Last => "as long as the last one did",
            Self::SlowerRehearsal => "since its rehearsal took longer than that of the last one",
        })
    }
}

/// A duration in milliseconds, with one decimal.
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ms", self.0.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    fn limit(ms: u64) -> Option<MaxDowntime> {
        MaxDowntime::of(&MigrationParameters { x_max_downtime: Some(ms), ..Default::default() })
    }

    #[rstest]
    #[case::as_the_last(5_000, None, None, None)]
    #[case::not_rehearsed_before(5_000, None, Some(90_000), None)]
    #[case::faster_rehearsal(5_000, Some(9_000), Some(1_000), None)]
    #[case::slower_rehearsal(
        5_000,
        Some(9_000),
        Some(18_000),
        Some("10.0 ms, since its rehearsal took longer")
    )]
    #[case::last_was_slow(
        9_100,
        Some(9_000),
        Some(9_000),
        Some("9.1 ms, as long as the last one did")
    )]
    #[case::much_slower(5_000, Some(1), Some(18_000), Some("50.0 ms, since"))]
    fn prediction(
        #[case] last: u64,
        #[case] then: Option<u64>,
        #[case] now: Option<u64>,
        #[case] why: Option<&str>,
    ) {
        let last = Blackout { downtime: us(last), rehearsal: then.map(us) };
        let refused = limit(9).unwrap().check(last, now.map(us)).err().map(|why| why.to_string());
        assert_eq!(refused.is_some(), why.is_some(), "{refused:?}");
        assert!(refused.unwrap_or_default().contains(why.unwrap_or_default()));
    }

    #[test]
    fn what_is_left_ends_at_the_limit() {
        assert_eq!((limit(0), MaxDowntime::of(&MigrationParameters::default())), (None, None));
        let hour = limit(3_600_000).unwrap();
        assert!(hour.left(monotonic_ns()).unwrap() > Duration::from_secs(3_000));
        let ago = monotonic_ns() - 20_000_000;
        let why = limit(5).unwrap().left(ago).unwrap_err();
        assert!(why.stopped >= us(20_000));
        let why = Exceeded { stopped: us(20_040), ..why };
        insta::assert_snapshot!(why, @"the guest has been stopped for 20.0 ms of the 5.0 ms that x-max-downtime allows: too little is left for the new VMM");
    }
}
