//! SIGKILL to the main process of a VMM, and other ways to end a VMM from outside.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::draw::draw;
use super::signal::EndSignal;

/// What must happen to a VM whose VMM is killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KillOutcome {
    /// The VM ends and leaves nothing behind.
    #[default]
    Gone,
    /// The VM continues in the process that was its keeper.
    Revived,
}

/// When a VMM has a keeper (`--keeper`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Keeper {
    /// From boot onwards.
    On,
    /// Only during updates.
    Update,
    /// Never.
    Off,
}

impl Keeper {
    /// The name in a scenario and on the VMM's command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Update => "update",
            Self::Off => "off",
        }
    }
}

/// SIGKILL to the main process of a VMM outside of updates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct KillVmm {
    /// What must happen to the VM.
    pub expect: KillOutcome,
    /// The longest delay before a kill, in milliseconds; each delay is drawn from the case's seed.
    #[serde(default = "twenty")]
    pub within_ms: u32,
    /// How often the same VM is killed.
    #[serde(default = "once", rename = "times")]
    pub repeat: u32,
}

fn twenty() -> u32 {
    20
}

fn once() -> u32 {
    1
}

impl KillVmm {
    /// The delay before kill `number`; the same seed gives the same delay.
    pub fn pause(&self, seed: u64, number: u32) -> Duration {
        let span = (u64::from(self.within_ms) * 1000).max(1);
        Duration::from_micros(draw(seed, number, 2) % span)
    }
}

/// What ends a VMM outside of updates, its keeper included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub enum EndBy {
    #[serde(rename = "SIGTERM")]
    Sigterm,
    #[serde(rename = "SIGINT")]
    Sigint,
    #[serde(rename = "SIGHUP")]
    Sighup,
    /// SIGKILL to every process of its cgroup.
    #[serde(rename = "cgroup-kill")]
    CgroupKill,
}

impl EndBy {
    /// The signal, if the VMM can shut down in an orderly way.
    pub fn signal(self) -> Option<EndSignal> {
        match self {
            Self::Sigterm => Some(EndSignal::Sigterm),
            Self::Sigint => Some(EndSignal::Sigint),
            Self::Sighup => Some(EndSignal::Sighup),
            Self::CgroupKill => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_same_pauses() {
        let kill = KillVmm { expect: KillOutcome::Revived, within_ms: 5, repeat: 50 };
        let pauses = |seed| -> Vec<Duration> { (0..50).map(|n| kill.pause(seed, n)).collect() };
        assert_eq!(pauses(7), pauses(7));
        assert_ne!(pauses(7), pauses(8));
        assert!(pauses(7).iter().all(|pause| *pause < Duration::from_millis(5)));
    }
}
