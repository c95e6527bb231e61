//! The harness's time limits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::observe::host;

/// How many times longer a wait may take where the CPU is emulated.
const EMULATED: u32 = 10;

/// How many times longer a wait may take under a wrapper, such as valgrind.
const WRAPPED: u32 = 10;

/// Whether the VMMs of this process run under a wrapper.
static IS_WRAPPED: AtomicBool = AtomicBool::new(false);

/// Makes all limits longer from now on, because the VMMs run under a wrapper: a debugger, a tracer or
/// a checker of memory.
pub fn expect_a_wrapper() {
    IS_WRAPPED.store(true, Ordering::Relaxed);
}

/// Why times are not measurements, if so.
pub fn why_unmeasured() -> Option<&'static str> {
    match (host::is_emulated(), IS_WRAPPED.load(Ordering::Relaxed)) {
        (true, _) => Some("emulated host"),
        (false, true) => Some("VMMs under a wrapper"),
        (false, false) => None,
    }
}

/// Whether times are measurements.
pub fn measures() -> bool {
    why_unmeasured().is_none()
}

/// Returns `limit`, or a multiple of it on a host whose CPUs are emulated, and under a wrapper.
pub fn patient(limit: Duration) -> Duration {
    let emulated = if host::is_emulated() { EMULATED } else { 1 };
    let wrapped = if IS_WRAPPED.load(Ordering::Relaxed) { WRAPPED } else { 1 };
    limit * emulated * wrapped
}

/// The limits of all waits, except for single QMP answers.
///
/// Generous by default: a busy host is not a failure, and a wait ends as soon as it is met.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From the start of the process to its QMP greeting.
    pub greeting: Duration,
    /// From there to the guest's body, on hosts that emulate CPL0; restarts while the guest is
    /// seen to fill its RAM.
    pub boot: Duration,
    /// The same for a Linux kernel.
    pub linux_boot: Duration,
    /// For the guest to make the progress that a step waits for.
    pub guest: Duration,
    /// For an update.
    pub update: Duration,
    /// For the exit of a VMM that was told to end.
    pub end: Duration,
    /// For the last events of a step.
    pub events: Duration,
    /// For the next heartbeat of every vCPU.
    pub beat: Duration,
    /// For every vCPU's heartbeat after the death of its VMM's process.
    pub revival: Duration,
    /// For every vCPU to begin a measurement; if one does not, nothing is measured.
    pub measure: Duration,
    /// How long a stopped guest is watched: the only wait that always lasts its full time.
    pub still: Duration,
    /// For descriptors and children that exist only briefly.
    pub settle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = |seconds| patient(Duration::from_secs(seconds));
        Self {
            greeting: seconds(10),
            boot: seconds(20),
            linux_boot: seconds(30),
            guest: seconds(20),
            // Both include the teardown of a VM, which takes one or two RCU grace periods: many
            // seconds on a busy host that emulates.
            update: seconds(40),
            end: seconds(40),
            events: seconds(2),
            beat: seconds(10),
            revival: seconds(1),
            measure: seconds(1),
            still: patient(Duration::from_millis(15)),
            settle: patient(Duration::from_millis(500)),
        }
    }
}

impl Patience {
    /// Returns the limit for `sweeps` whole sweeps over `ram` bytes, plus the rest of the current
    /// sweep.
    pub fn sweeps_over(&self, ram: u64, sweeps: u64) -> Duration {
        self.guest + patient(Duration::from_secs(10 * (ram >> 30) * (sweeps + 1)))
    }
}
