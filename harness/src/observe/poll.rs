//! The one place that polls: shared memory and `/proc` have nothing to wait on.

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
    /// The moment `limit` from now.
    pub fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }

    /// The time left, zero once it has passed.
    pub fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// True once the moment is over.
    pub fn passed(&self) -> bool {
        self.remaining().is_zero()
    }

    /// The whole time that was given.
    pub fn limit(&self) -> Duration {
        self.limit
    }
}

/// Looks until there is something to see; None when the deadline passed first.
pub fn until<T>(deadline: Deadline, look: impl FnMut() -> Option<T>) -> Option<T> {
    looking(deadline, LONGEST, look)
}

/// The same, every tenth of a millisecond and the kernel's timer slack: for what is measured.
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
        // In this order, so that a late look still counts: the machine may have been busy.
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

/// Looks for the whole window; returns what was seen early, None if it stayed quiet.
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
    fn nothing_to_see_ends_at_the_deadline() {
        let deadline = Deadline::after(Duration::from_millis(5));
        assert_eq!(until(deadline, || None::<()>), None);
        assert!(deadline.passed());
    }
}
