//! When the steps of a take-over were done, for the log; and which was the last, for the error of
//! one that is never done.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::state::monotonic_ns;

static LAST: AtomicPtr<&'static str> = AtomicPtr::new(ptr::null_mut());

/// The newest stamp of this process. Async-signal-safe.
pub fn last_done() -> Option<&'static str> {
    // SAFETY: null, or what `done` got: a reference to a static that is only read.
    unsafe { LAST.load(Ordering::Relaxed).as_ref() }.copied()
}

/// Stamps of `CLOCK_MONOTONIC`, each with what had been done by then.
#[derive(Debug)]
pub struct Phases {
    stamps: Vec<(&'static str, u64)>,
}

impl Phases {
    /// The first stamp: `main` has begun.
    pub fn begin() -> Self {
        Self { stamps: vec![("main", monotonic_ns())] }
    }

    /// One more.
    pub fn done(&mut self, what: &'static &'static str) {
        LAST.store(ptr::from_ref(what).cast_mut(), Ordering::Relaxed);
        self.stamps.push((what, monotonic_ns()));
    }

    /// Microseconds since `start_ns` at each stamp, as `main=512 adopt=530 …`.
    pub fn since(&self, start_ns: u64) -> String {
        let since =
            |&(what, at): &(&str, u64)| format!("{what}={}", at.saturating_sub(start_ns) / 1000);
        self.stamps.iter().map(since).collect::<Vec<_>>().join(" ")
    }
}
