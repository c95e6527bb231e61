//! Long series of updates, with setbacks and pauses among them.

use std::time::Duration;

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::draw::draw;

/// A series of updates, each after a random delay, some with a pause or a failing update around
/// them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Soak {
    /// Number of good updates.
    #[serde(rename = "times")]
    pub updates: u32,
    /// The longest delay between two updates, in milliseconds.
    #[serde(default = "twenty")]
    pub within_ms: u32,
    /// Whether the series includes updates that must not succeed.
    #[serde(default)]
    pub setbacks: Setbacks,
    /// Whether the series begins with a guest that has not started and ends once it has booted. The
    /// guest is stopped for each update, so that it runs only for the delays.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_boot: bool,
}

/// Whether to include updates that must be refused or rolled back, each before a good one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Setbacks {
    /// Before two of sixteen good updates, on average.
    #[default]
    Some,
    /// None: for a VMM that is known not to handle them well.
    None,
}

fn twenty() -> u32 {
    20
}

/// One good update, and what comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoakUpdate {
    /// The delay before it.
    pub after: Duration,
    /// What comes with it.
    pub with: Disturbance,
}

/// What comes with a good update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// Nothing.
    Nothing,
    /// `stop` and `cont` before it.
    PauseBefore,
    /// `stop` before it, `cont` after it.
    PauseAround,
    /// An update before it that is refused or rolled back because its state cannot be written.
    NoChannel,
    /// An update before it that is rolled back because its command cannot be executed.
    NoCommand,
}

impl Soak {
    /// Burst `number` of the series that `seed` generates.
    pub fn burst(&self, seed: u64, number: u32) -> SoakUpdate {
        let within_us = (u64::from(self.within_ms) * 1000).max(1);
        let after = Duration::from_micros(draw(seed, number, 0) % within_us);
        let with = match draw(seed, number, 1) % 16 {
            0 => Disturbance::PauseBefore,
            1 => Disturbance::PauseAround,
            2 if self.setbacks == Setbacks::Some => Disturbance::NoChannel,
            3 if self.setbacks == Setbacks::Some => Disturbance::NoCommand,
            _ => Disturbance::Nothing,
        };
        SoakUpdate { after, with }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_same_bursts_and_every_kind_occurs() {
        let soak = Soak { updates: 100, within_ms: 5, setbacks: Setbacks::Some, in_boot: false };
        let bursts = |seed| -> Vec<SoakUpdate> { (0..100).map(|n| soak.burst(seed, n)).collect() };
        assert_eq!(bursts(7), bursts(7));
        assert_ne!(bursts(7), bursts(8));
        let all = [
            Disturbance::Nothing,
            Disturbance::PauseBefore,
            Disturbance::PauseAround,
            Disturbance::NoChannel,
            Disturbance::NoCommand,
        ];
        for with in all {
            assert!(bursts(7).iter().any(|burst| burst.with == with), "{with:?}");
        }
        let none = Soak { setbacks: Setbacks::None, ..soak.clone() };
        let kinds = (0..100).map(|n| none.burst(7, n).with);
        let is_setback = |with| matches!(with, Disturbance::NoChannel | Disturbance::NoCommand);
        assert_eq!(kinds.filter(|with| is_setback(*with)).count(), 0);
    }
}
