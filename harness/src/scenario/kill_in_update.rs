//! Signals at random moments of an update.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::command_kind::CommandKind;
use super::kill::KillOutcome;
use super::signal::EndSignal;

/// How often and when a signal interrupts an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct KillInUpdate {
    /// The command of the update.
    #[serde(default)]
    pub command: CommandKind,
    /// The signal.
    #[serde(default)]
    pub signal: EndSignal,
    /// What must happen to the VM; a revived VM is killed again.
    #[serde(default)]
    pub expect: KillOutcome,
    /// Whether the command is rehearsed first.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub rehearsal: bool,
    /// The event from which the time of the signal counts.
    #[serde(default, skip_serializing_if = "Origin::is_default")]
    pub from: Origin,
    /// The point at which the update is held while the signal is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The earliest time of the signal: milliseconds before `migrate` is sent.
    #[serde(default = "before")]
    pub before_ms: u32,
    /// The latest time of the signal: milliseconds after `migrate` is sent.
    #[serde(default = "after")]
    pub after_ms: u32,
    /// How often to kill; a VM that is gone is started again.
    #[serde(default = "once", rename = "times")]
    pub repeat: u32,
}

/// The event from which the time of a kill counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The harness sends `migrate`.
    #[default]
    Migrate,
    /// The event `MIGRATION` with status `setup` arrives; a keeper must exist by then.
    Setup,
}

impl Origin {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn yes() -> bool {
    true
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_yes(value: &bool) -> bool {
    *value
}

fn before() -> u32 {
    1
}

/// About as long as an update takes on a busy machine.
fn after() -> u32 {
    30
}

fn once() -> u32 {
    1
}

impl Default for KillInUpdate {
    fn default() -> Self {
        Self {
            command: CommandKind::default(),
            signal: EndSignal::default(),
            expect: KillOutcome::default(),
            rehearsal: yes(),
            from: Origin::default(),
            at: None,
            before_ms: before(),
            after_ms: after(),
            repeat: once(),
        }
    }
}

impl KillInUpdate {
    /// The time of kill `number`, in microseconds after `migrate` is sent; the same seed gives the
    /// same time.
    pub fn moment(&self, seed: u64, number: u32) -> i64 {
        let before = i64::from(self.before_ms) * 1000;
        let span = before + i64::from(self.after_ms) * 1000;
        let drawn = xxh3_64_with_seed(&number.to_le_bytes(), seed) >> 1;
        // The shift keeps it non-negative; the remainder is below the span, which is an `i64`.
        drawn as i64 % span.max(1) - before
    }

    /// Whether at least one kill must fall between the first and the last event of an update.
    pub fn must_land(&self) -> bool {
        let ends = !self.signal.asks() && self.command == CommandKind::Good;
        ends && (self.repeat > 1 || self.at.is_some())
    }

    /// The next attempt if no kill fell inside an update: the `nth` one, closer to the first event.
    pub fn closer(&self, nth: u32) -> Self {
        let after_ms = self.after_ms.checked_shr(nth + 1).unwrap_or(0);
        Self { from: Origin::Setup, before_ms: 0, after_ms, rehearsal: false, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kills(before_ms: u32, after_ms: u32) -> KillInUpdate {
        let (command, signal) = (CommandKind::Good, EndSignal::Sigkill);
        KillInUpdate {
            command,
            signal,
            before_ms,
            after_ms,
            repeat: 200,
            ..KillInUpdate::default()
        }
    }

    #[test]
    fn moments_cover_the_span_and_repeat_for_the_same_seed() {
        let kills = kills(1, 20);
        let moments: Vec<i64> = (0..200).map(|n| kills.moment(7, n)).collect();
        assert!(moments.iter().all(|m| (-1000..20_000).contains(m)), "{moments:?}");
        // One seed in 30,000 leaves a given twentieth of the span without any moment.
        for start in (-1000..20_000).step_by(1050) {
            assert!(moments.iter().any(|m| (start..start + 1050).contains(m)), "{start}");
        }
        assert_eq!(moments, (0..200).map(|n| kills.moment(7, n)).collect::<Vec<_>>());
        assert_ne!(moments[0], kills.moment(8, 0));
    }

    #[test]
    fn an_empty_span_is_one_moment() {
        assert_eq!(kills(0, 0).moment(7, 0), 0);
    }
}
