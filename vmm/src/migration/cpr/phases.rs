//! Time stamps of an update's steps, for the log, and the last step that a take-over finished, for
//! the error of one that fails.

use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::monotonic::monotonic_ns;

static LAST: AtomicPtr<&'static str> = AtomicPtr::new(ptr::null_mut());

/// How far a take-over has come, as text for an error; empty if none is under way. Displaying it
/// allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct Progress(Option<&'static str>);

impl Progress {
    /// Returns the current progress. Async-signal-safe.
    pub fn now() -> Self {
        // SAFETY: null, or the argument of `done`: a reference to a static that is only read.
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

/// Time stamps of `CLOCK_MONOTONIC`, each with the step that was finished then.
#[derive(Debug)]
pub struct Phases {
    stamps: Vec<(&'static str, u64)>,
}

impl Phases {
    /// Creates an empty list, for an update in the old process.
    pub fn outgoing() -> Self {
        Self { stamps: Vec::with_capacity(8) }
    }

    /// Creates the list of a take-over. Its first stamp marks the start of `main`.
    pub fn begin() -> Self {
        Self { stamps: vec![("main", monotonic_ns())] }
    }

    /// Adds a stamp that is not reported in errors.
    pub fn stamp(&mut self, what: &'static str) {
        self.stamps.push((what, monotonic_ns()));
    }

    /// Adds a stamp, and makes it the step that errors report.
    pub fn done(&mut self, what: &'static &'static str) {
        LAST.store(ptr::from_ref(what).cast_mut(), Ordering::Relaxed);
        self.stamp(what);
    }

    /// Ends the take-over: errors no longer report a step.
    pub fn end(&self) {
        LAST.store(ptr::null_mut(), Ordering::Relaxed);
    }

    /// Returns the microseconds from `start_ns` to each stamp, as `main=512 adopt=530 …`.
    pub fn since(&self, start_ns: u64) -> String {
        let since =
            |&(what, at): &(&str, u64)| format!("{what}={}", at.saturating_sub(start_ns) / 1000);
        self.stamps.iter().map(since).collect::<Vec<_>>().join(" ")
    }
}
