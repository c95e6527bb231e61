//! When the guest has been stopped for as long as an update may stop it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::alarm::Alarm;
use super::{ArmError, Record, Role};
use crate::sys;

/// How long a process that has stopped the guest for too long has to notice that by itself.
const NOTICE: Duration = Duration::from_millis(100);

/// `CLOCK_MONOTONIC` at the end of that time, in nanoseconds; 0: it has no end.
static END: AtomicU64 = AtomicU64::new(0);

/// What a deadline is called that passes now.
pub(super) fn name_of_deadline() -> &'static str {
    let end = END.load(Ordering::SeqCst);
    match end > 0 && sys::monotonic_ns() >= end {
        true => PASSED,
        false => super::DEADLINE_PASSED,
    }
}

/// The end of the reason given by a process that has stopped the guest for too long.
pub const PASSED: &str = "x-max-downtime passed";

/// Notes the end for a process that takes over as `record` says.
pub(super) fn note(record: &Record, role: &Role) {
    // After a fallback there is none.
    let end = record.downtime_end_ns.filter(|_| !matches!(role, Role::Returned(_)));
    END.store(end.unwrap_or(0), Ordering::SeqCst);
}

/// Forgets the end: the guest runs again.
pub(super) fn forget() {
    END.store(0, Ordering::SeqCst);
}

/// While this exists, a process that is [`protected`](super::protected) continues the guest itself
/// if that is still stopped some time after the end.
#[must_use = "dropping it removes the limit"]
pub struct DowntimeLimit(#[expect(dead_code, reason = "it is dropped")] Alarm);

/// Limits the time that the guest is stopped in this process. Call it on the main thread.
pub fn limit_downtime(end_ns: u64) -> Result<DowntimeLimit, ArmError> {
    let left = Duration::from_nanos(end_ns.saturating_sub(sys::monotonic_ns()));
    let mut alarm = Alarm::new()?;
    alarm.set(Some(left.saturating_add(NOTICE)))?;
    END.store(end_ns, Ordering::SeqCst);
    Ok(DowntimeLimit(alarm))
}

impl Drop for DowntimeLimit {
    fn drop(&mut self) {
        forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Alone: the end is the process's.
    #[test]
    fn a_deadline_is_named_after_what_has_passed() {
        assert_eq!(name_of_deadline(), super::super::DEADLINE_PASSED);
        let record = |end| Record { downtime_end_ns: Some(end), ..Record::prepare(Duration::ZERO) };
        note(&record(1), &Role::New);
        assert_eq!(name_of_deadline(), PASSED);
        note(&record(u64::MAX), &Role::New);
        assert_eq!(name_of_deadline(), super::super::DEADLINE_PASSED);
        note(&record(1), &Role::Returned(String::new()));
        assert_eq!(name_of_deadline(), super::super::DEADLINE_PASSED);
        // No alarm may reach a thread of this test.
        let limit = limit_downtime(u64::MAX).unwrap();
        END.store(1, Ordering::SeqCst);
        assert_eq!(name_of_deadline(), PASSED);
        drop(limit);
        assert_eq!(name_of_deadline(), super::super::DEADLINE_PASSED);
    }
}
