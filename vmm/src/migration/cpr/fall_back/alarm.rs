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
