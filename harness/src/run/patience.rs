//! How long the harness waits for what.

use std::time::Duration;

/// Limits of all waits but those for single QMP answers.
///
/// Generous by default: a busy host is no failure, and a wait that is met costs nothing.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the start of the process to its QMP greeting.
    pub greeting: Duration,
    /// From there to the guest's body, on hosts that emulate its CPL0; as long again while it fills
    /// its RAM.
    pub boot: Duration,
    /// For the guest to get somewhere.
    pub guest: Duration,
    /// For an update.
    pub update: Duration,
    /// For a VMM that was told to end.
    pub end: Duration,
    /// For the last events of a step.
    pub events: Duration,
    /// For the next heartbeat of every vCPU.
    pub beat: Duration,
    /// For every vCPU's heartbeat after the death of its VMM's process.
    pub revival: Duration,
    /// For every vCPU to begin a measurement; one that does not is not measured.
    pub measure: Duration,
    /// How long a stopped guest is watched: the one wait that is always spent.
    pub still: Duration,
    /// For descriptors and children that are there only for a moment.
    pub settle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            greeting: seconds(10),
            boot: seconds(20),
            guest: seconds(20),
            // Both end with a VM, which takes an RCU grace period or two: many seconds on a busy
            // host that emulates.
            update: seconds(40),
            end: seconds(40),
            events: seconds(2),
            beat: seconds(10),
            revival: seconds(1),
            measure: seconds(1),
            still: Duration::from_millis(15),
            settle: Duration::from_millis(500),
        }
    }
}

impl Patience {
    /// For so many whole sweeps over so many bytes of RAM, and what is left of the one before.
    pub fn sweeps_over(&self, ram: u64, sweeps: u64) -> Duration {
        self.guest + Duration::from_secs(10 * (ram >> 30) * (sweeps + 1))
    }
}
