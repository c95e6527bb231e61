//! The test port: a guest writes marker n here, so that the log shows when it got there.

use serde::{Deserialize, Serialize};

/// The port, 32 bits wide.
pub const PORT: u16 = 0x580;

/// What the port has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestPortState {
    /// The newest marker.
    pub marker: u32,
    /// Writes so far.
    pub writes: u64,
    /// Reads so far.
    pub reads: u64,
}

impl TestPortState {
    /// The guest has reached a marker.
    pub fn write(&mut self, marker: u32) {
        self.marker = marker;
        self.writes += 1;
        tracing::debug!(marker, writes = self.writes, "guest_marker");
    }

    /// Answers how many reads there were before this one.
    pub fn read(&mut self) -> u32 {
        let answer = self.reads as u32;
        self.reads += 1;
        answer
    }
}
