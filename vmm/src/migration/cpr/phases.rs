//! When the steps of an update were done, for the log; and which of a take-over was the last, for
//! the error of one that is never done.

use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::state::monotonic_ns;

static LAST: AtomicPtr<&'static str> = AtomicPtr::new(ptr::null_mut());

/// How far a take-over has come, in words for an error; nothing if there is none. Made without
/// memory.
#[derive(Clone, Copy, Debug)]
pub struct Progress(Option<&'static str>);

impl Progress {
    /// As it is now. Async-signal-safe.
    pub fn now() -> Self {
        // SAFETY: null, or what `done` got: a reference to a static that is only read.
        Self(unsafe { LAST.load(Ordering::Relaxed).as_ref() }.copied())
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(last) => write!(f, "after \"{last}\" "),
            None => Ok(()),
        }
    }
}

/// Stamps of `CLOCK_MONOTONIC`, each with what had been done by then.
#[derive(Debug)]
pub struct Phases {
    stamps: Vec<(&'static str, u64)>,
}

impl Phases {
    /// Of an update in the old process: no stamp yet.
    pub fn outgoing() -> Self {
        Self { stamps: Vec::with_capacity(8) }
    }

    /// Of a take-over. The first stamp: `main` has begun.
    pub fn begin() -> Self {
        Self { stamps: vec![("main", monotonic_ns())] }
    }

    /// One more that no error names.
    pub fn stamp(&mut self, what: &'static str) {
        self.stamps.push((what, monotonic_ns()));
    }

    /// One more.
    pub fn done(&mut self, what: &'static &'static str) {
        LAST.store(ptr::from_ref(what).cast_mut(), Ordering::Relaxed);
        self.stamp(what);
    }

    /// The take-over is over.
    pub fn end(&self) {
        LAST.store(ptr::null_mut(), Ordering::Relaxed);
    }

    /// Microseconds since `start_ns` at each stamp, as `main=512 adopt=530 …`.
    pub fn since(&self, start_ns: u64) -> String {
        let since =
            |&(what, at): &(&str, u64)| format!("{what}={}", at.saturating_sub(start_ns) / 1000);
        self.stamps.iter().map(since).collect::<Vec<_>>().join(" ")
    }
}
