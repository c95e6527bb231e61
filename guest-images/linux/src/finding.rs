//! What a part of the agent has found wrong.

use crate::mailbox::damage_kind;
use crate::reporting::Report;

/// Damage, with the text that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Its numbers.
    pub report: Report,
    /// What is wrong.
    pub text: String,
}

impl Finding {
    /// Damage that only a text describes.
    pub fn text(text: impl Into<String>) -> Self {
        let report = Report { kind: damage_kind::TEXT, ..Report::default() };
        Self { report, text: text.into() }
    }

    /// A wrong value of what `name` names.
    pub fn value(expected: u64, found: u64, name: impl Into<String>) -> Self {
        let report = Report { kind: damage_kind::VALUE, expected, found, ..Report::default() };
        Self { report, text: name.into() }
    }

    /// A system call that failed, which never does otherwise.
    pub fn call(what: &str, error: impl std::fmt::Display) -> Self {
        Self::text(format!("cannot {what}: {error}"))
    }
}
