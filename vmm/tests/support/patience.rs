//! Waiting with a deadline.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Far longer than anything here takes: a loaded host is no failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until `look` finds something; what it saw instead goes into the message
/// of the panic at the deadline.
pub fn until<T, S: Debug>(awaited: &str, mut look: impl FnMut() -> Result<T, S>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if Instant::now() > deadline => {
                panic!("waited {PATIENCE:?} for {awaited}; seen instead: {seen:?}")
            }
            // Between two looks, not instead of one.
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}
