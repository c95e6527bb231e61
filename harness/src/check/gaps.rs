//! How long a guest stood still, as its heartbeats tell.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a running guest noticed of a refused update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// How long the guest was watched.
    pub took: Duration,
    /// The largest gap between its heartbeats in an equally long time without requests.
    pub calm: Duration,
    /// The largest gap while the update was refused.
    pub during: Duration,
    /// How often the vCPUs' threads went to sleep meanwhile, if they never did in the calm time.
    pub sleeps: Option<u64>,
}

impl Refusal {
    /// Returns the ratio of the gap during the refused update to the calm gap.
    pub fn ratio(&self) -> f64 {
        self.during.as_secs_f64() / self.calm.as_secs_f64().max(1e-9)
    }
}

/// The gaps between the guest's heartbeats around a step.
pub struct Gaps<'a> {
    /// The blackout of the update, once every vCPU has sent a heartbeat again.
    pub blackout: &'a dyn Fn() -> Option<Duration>,
    /// The refused update of the step, if any.
    pub refusal: Option<&'a Refusal>,
    /// The largest gap in this case's calm times.
    pub calm: Duration,
    /// The blackout that the scenario allows an update.
    pub asked: Option<Duration>,
}
