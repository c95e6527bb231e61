//! The only place that polls: shared memory and `/proc` offer nothing to wait on.

use std::time::{Duration, Instant};

const SHORTEST: Duration = Duration::from_micros(100);
const LONGEST: Duration = Duration::from_millis(2);

/// A moment by which something must have happened.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    /// Creates the deadline `limit` from now.
    pub fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }

    /// The time left; zero once it has passed.
    pub fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Returns true once the deadline has passed.
    pub fn passed(&self) -> bool {
        self.remaining().is_zero()
    }

    /// The whole time from its creation to the deadline.
    pub fn limit(&self) -> Duration {
        self.limit
    }
}

/// Polls until `look` returns something; `None` if the deadline passes first.
pub fn until<T>(deadline: Deadline, look: impl FnMut() -> Option<T>) -> Option<T> {
    looking(deadline, LONGEST, look)
}

/// Polls like [`until`], but every 100 µs plus the kernel's timer slack: for measurements.
pub fn finely<T>(deadline: Deadline, look: impl FnMut() -> Option<T>) -> Option<T> {
    looking(deadline, SHORTEST, look)
}

fn looking<T>(
    deadline: Deadline,
    longest: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> Option<T> {
    let mut pause = SHORTEST;
    loop {
        // Checked before the look, so that a late one still counts: the machine may have been busy.
        let late = deadline.passed();
        if let Some(seen) = look() {
            return Some(seen);
        }
        if late {
            return None;
        }
        std::thread::sleep(pause.min(deadline.remaining()));
        pause = (pause * 2).min(longest);
    }
}

/// Polls for the whole window; returns early what `look` sees, `None` if it sees nothing.
pub fn during<T>(window: Duration, look: impl FnMut() -> Option<T>) -> Option<T> {
    until(Deadline::after(window), look)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_look_still_counts() {
        assert_eq!(until(Deadline::after(Duration::ZERO), || Some(1)), Some(1));
    }

    #[test]
    fn returns_none_at_the_deadline() {
        let deadline = Deadline::after(Duration::from_millis(5));
        assert_eq!(until(deadline, || None::<()>), None);
        assert!(deadline.passed());
    }
}
