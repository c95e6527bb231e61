//! The timer of a deadline.

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{SigEvent, SigevNotify};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;

use super::ALARM;

/// The error of a trigger that cannot be installed.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{call}: {errno}")]
pub struct TriggerError {
    pub(super) call: &'static str,
    pub(super) errno: Errno,
}

/// A timer that sends the alarm to the thread that made it.
pub(super) struct Alarm(Timer);

impl Alarm {
    pub(super) fn new() -> Result<Self, TriggerError> {
        let thread_id = nix::unistd::gettid().as_raw();
        let notify = SigevNotify::SigevThreadId { signal: ALARM, thread_id, si_value: 0 };
        let timer = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(notify));
        let error = |errno| TriggerError { call: "timer_create", errno };
        Ok(Self(timer.map_err(error)?))
    }

    /// Sends the alarm when this much time has passed; `None`: never.
    pub(super) fn set(&mut self, after: Option<Duration>) -> Result<(), TriggerError> {
        // Zero would disarm it, and the kernel takes no more than this many seconds.
        let most = Duration::from_secs(i32::MAX as u64);
        let after =
            after.map_or(Duration::ZERO, |after| after.clamp(Duration::from_nanos(1), most));
        self.0
            .set(Expiration::OneShot(after.into()), TimerSetTimeFlags::empty())
            .map_err(|errno| TriggerError { call: "timer_settime", errno })
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // `Timer` deletes nothing while the thread panics, and the alarm would outlive its handler.
        let _ = self.set(None);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use nix::sys::signal::SigSet;

    use super::*;

    #[test]
    fn alarm_does_not_outlive_a_panic() {
        let only = SigSet::from_iter([ALARM]);
        only.thread_block().unwrap();
        let mut alarm = Alarm::new().unwrap();
        alarm.set(Some(Duration::from_millis(100))).unwrap();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _dropped_here = alarm;
            panic!("as a test does");
        }));
        assert!(panicked.is_err());
        let wait = libc::timespec { tv_sec: 0, tv_nsec: 300_000_000 };
        // SAFETY: both structures live for the call; no information about the signal is wanted.
        let got = unsafe { libc::sigtimedwait(only.as_ref(), std::ptr::null_mut(), &wait) };
        assert_eq!(Errno::result(got), Err(Errno::EAGAIN));
    }
}
