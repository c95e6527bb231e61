//! When the steps of a take-over were done, for the log.

use super::state::monotonic_ns;

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
    pub fn done(&mut self, what: &'static str) {
        self.stamps.push((what, monotonic_ns()));
    }

    /// Microseconds since `start_ns` at each stamp, as `main=512 adopt=530 …`.
    pub fn since(&self, start_ns: u64) -> String {
        let since =
            |&(what, at): &(&str, u64)| format!("{what}={}", at.saturating_sub(start_ns) / 1000);
        self.stamps.iter().map(since).collect::<Vec<_>>().join(" ")
    }
}
