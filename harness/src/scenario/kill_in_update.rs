//! Signals at random moments of an update.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::command_kind::CommandKind;
use super::kill::Fate;
use super::signal::EndSignal;

/// How often an update is cut off by a signal, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KillInUpdate {
    /// The command of the update.
    #[serde(default)]
    pub command: CommandKind,
    /// The signal.
    #[serde(default)]
    pub signal: EndSignal,
    /// What must become of the VM; one that is revived is killed again.
    #[serde(default)]
    pub expect: Fate,
    /// The command is rehearsed first.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub rehearsal: bool,
    /// From when the moment counts.
    #[serde(default, skip_serializing_if = "Origin::is_default")]
    pub from: Origin,
    /// The update is held at this point, and the signal comes while it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The earliest moment: milliseconds before `migrate` is sent.
    #[serde(default = "before")]
    pub before_ms: u32,
    /// The latest: milliseconds after that.
    #[serde(default = "after")]
    pub after_ms: u32,
    /// How often; a VM that is gone is started anew.
    #[serde(default = "once")]
    pub repeat: u32,
}

/// From when the moment of a kill counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// From the sending of `migrate`.
    #[default]
    Migrate,
    /// From the arrival of `MIGRATION` `setup`: a keeper must be there then.
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

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_yes(value: &bool) -> bool {
    *value
}

fn before() -> u32 {
    1
}

/// As long as an update takes on a busy machine.
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
            expect: Fate::default(),
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
    /// The moment of kill `number`, in microseconds after `migrate` is sent; the same for the same
    /// seed.
    pub fn moment(&self, seed: u64, number: u32) -> i64 {
        let before = i64::from(self.before_ms) * 1000;
        let span = before + i64::from(self.after_ms) * 1000;
        let drawn = xxh3_64_with_seed(&number.to_le_bytes(), seed) >> 1;
        // Masked, so it is not negative; and less than the span, which is an `i64`.
        drawn as i64 % span.max(1) - before
    }

    /// Whether some of its kills must come between the first event of an update and the last.
    pub fn must_land(&self) -> bool {
        let ends = !self.signal.asks() && self.command == CommandKind::Good;
        ends && (self.repeat > 1 || self.at.is_some())
    }

    /// What comes after kills none of which has landed: for the `nth` time, closer to the first event.
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
    fn moments_cover_the_span_and_can_be_drawn_again() {
        let kills = kills(1, 20);
        let moments: Vec<i64> = (0..200).map(|n| kills.moment(7, n)).collect();
        assert!(moments.iter().all(|m| (-1000..20_000).contains(m)), "{moments:?}");
        // A twentieth of the span is missed by all of them once in 30,000 seeds.
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
