//! Updates and pauses at random moments.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// So many updates, each after a random time, with pauses of the guest between some of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Storm {
    /// How many updates.
    pub updates: u32,
    /// The longest time between two.
    #[serde(default = "five")]
    pub within_ms: u64,
}

fn five() -> u64 {
    5
}

/// One thing that happens in a storm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gust {
    /// After this time.
    pub after: Duration,
    /// The guest is stopped for the update, or right before it and goes on.
    pub kind: GustKind,
}

/// What a gust is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GustKind {
    /// An update.
    Update,
    /// `stop`, `cont`, and an update.
    PauseThenUpdate,
    /// `stop`, an update, `cont`.
    UpdatePaused,
}

impl Storm {
    /// Number `number` of the storm that `seed` raises.
    pub fn gust(&self, seed: u64, number: u32) -> Gust {
        let after = Duration::from_micros(draw(seed, number, 0) % (self.within_ms * 1000).max(1));
        let kind = match draw(seed, number, 1) % 8 {
            0 => GustKind::PauseThenUpdate,
            1 => GustKind::UpdatePaused,
            _ => GustKind::Update,
        };
        Gust { after, kind }
    }
}

/// What `seed` gives for one choice of number `number`.
pub(super) fn draw(seed: u64, number: u32, choice: u8) -> u64 {
    xxh3_64_with_seed(&[&number.to_le_bytes()[..], &[choice]].concat(), seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_raises_the_same_storm_again_and_another_seed_another() {
        let storm = Storm { updates: 100, within_ms: 5 };
        let gusts = |seed| -> Vec<Gust> { (0..100).map(|n| storm.gust(seed, n)).collect() };
        assert_eq!(gusts(7), gusts(7));
        assert_ne!(gusts(7), gusts(8));
        assert!(gusts(7).iter().all(|gust| gust.after < Duration::from_millis(5)));
        for kind in [GustKind::Update, GustKind::PauseThenUpdate, GustKind::UpdatePaused] {
            assert!(gusts(7).iter().any(|gust| gust.kind == kind));
        }
    }
}
