//! Updates without end, with setbacks and pauses among them.

use std::time::Duration;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::storm::draw;

/// So many updates, each after a random time, some of them with something before or around them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Soak {
    /// How many good updates.
    pub updates: u32,
    /// The longest time between two.
    #[serde(default = "twenty")]
    pub within_ms: u64,
    /// Whether there are some among them that do not succeed.
    #[serde(default)]
    pub setbacks: Setbacks,
}

/// Updates that must be refused or undone, each before a good one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Setbacks {
    /// Before two of sixteen.
    #[default]
    Some,
    /// None: for a VMM that is known not to take them well.
    None,
}

fn twenty() -> u64 {
    20
}

/// One good update, and what comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// After this time.
    pub after: Duration,
    /// What comes with it.
    pub with: With,
}

/// What comes with a good update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    /// Nothing.
    Nothing,
    /// `stop` and `cont` before it.
    PauseBefore,
    /// `stop` before it, `cont` after it.
    PauseAround,
    /// One before it that is refused, or undone, because its state cannot be written.
    NoChannel,
    /// One before it that is undone, because its command cannot be executed.
    NoCommand,
}

impl Soak {
    /// Number `number` of those that `seed` gives.
    pub fn burst(&self, seed: u64, number: u32) -> Burst {
        let after = Duration::from_micros(draw(seed, number, 0) % (self.within_ms * 1000).max(1));
        let with = match draw(seed, number, 1) % 16 {
            0 => With::PauseBefore,
            1 => With::PauseAround,
            2 if self.setbacks == Setbacks::Some => With::NoChannel,
            3 if self.setbacks == Setbacks::Some => With::NoCommand,
            _ => With::Nothing,
        };
        Burst { after, with }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_again_and_something_of_everything() {
        let soak = Soak { updates: 100, within_ms: 5, setbacks: Setbacks::Some };
        let bursts = |seed| -> Vec<Burst> { (0..100).map(|n| soak.burst(seed, n)).collect() };
        assert_eq!(bursts(7), bursts(7));
        assert_ne!(bursts(7), bursts(8));
        let all =
            [With::Nothing, With::PauseBefore, With::PauseAround, With::NoChannel, With::NoCommand];
        for with in all {
            assert!(bursts(7).iter().any(|burst| burst.with == with), "{with:?}");
        }
        let none = Soak { setbacks: Setbacks::None, ..soak.clone() };
        let kinds = (0..100).map(|n| none.burst(7, n).with);
        let is_setback = |with| matches!(with, With::NoChannel | With::NoCommand);
        assert_eq!(kinds.filter(|with| is_setback(*with)).count(), 0);
    }
}
