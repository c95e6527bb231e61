//! Waiting with a deadline.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Deadline for every wait, far longer than anything here takes, even on a loaded host.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls `look` until it returns `Ok`; at the deadline, panics with the last `Err`.
pub fn until<T, S: Debug>(awaited: &str, mut look: impl FnMut() -> Result<T, S>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if Instant::now() > deadline => {
                panic!("waited {PATIENCE:?} for {awaited}; seen instead: {seen:?}")
            }
            // Poll interval.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
