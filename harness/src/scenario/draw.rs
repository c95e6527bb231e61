//! Updates and pauses at random times.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A series of updates, each after a random delay, some before or during a pause of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Storm {
    /// Number of updates.
    #[serde(rename = "times")]
    pub updates: u32,
    /// The longest delay between two updates, in milliseconds.
    #[serde(default = "five")]
    pub within_ms: u64,
}

fn five() -> u64 {
    5
}

/// One event of a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StormEvent {
    /// The delay before it.
    pub after: Duration,
    /// Whether the guest is paused before or during the update.
    pub kind: StormEventKind,
}

/// What happens in a gust.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StormEventKind {
    /// An update.
    Update,
    /// `stop`, `cont`, and an update.
    PauseThenUpdate,
    /// `stop`, an update, `cont`.
    UpdatePaused,
}

impl Storm {
    /// Gust `number` of the storm that `seed` generates.
    pub fn storm_event(&self, seed: u64, number: u32) -> StormEvent {
        let after = Duration::from_micros(draw(seed, number, 0) % (self.within_ms * 1000).max(1));
        let kind = match draw(seed, number, 1) % 8 {
            0 => StormEventKind::PauseThenUpdate,
            1 => StormEventKind::UpdatePaused,
            _ => StormEventKind::Update,
        };
        StormEvent { after, kind }
    }
}

/// Draws a random value from `seed` for one choice of item `number`.
pub(super) fn draw(seed: u64, number: u32, choice: u8) -> u64 {
    xxh3_64_with_seed(&[&number.to_le_bytes()[..], &[choice]].concat(), seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_same_storm_and_other_seed_another() {
        let storm = Storm { updates: 100, within_ms: 5 };
        let gusts =
            |seed| -> Vec<StormEvent> { (0..100).map(|n| storm.storm_event(seed, n)).collect() };
        assert_eq!(gusts(7), gusts(7));
        assert_ne!(gusts(7), gusts(8));
        assert!(gusts(7).iter().all(|storm_event| storm_event.after < Duration::from_millis(5)));
        for kind in
            [StormEventKind::Update, StormEventKind::PauseThenUpdate, StormEventKind::UpdatePaused]
        {
            assert!(gusts(7).iter().any(|storm_event| storm_event.kind == kind));
        }
    }
}
