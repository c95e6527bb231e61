//! What this host offers to the harness, and what to do about what it does not.

pub mod kvm;
pub mod load;
pub mod memory;
pub mod place;
pub mod qemu;
pub mod reach;
pub mod rights;

use crate::backend::Backend;

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Good,
    /// Something is ignored, or slower, or measured worse.
    Limited,
    /// Nothing can run.
    Missing,
}

/// What was found in one respect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// In which.
    pub topic: &'static str,
    /// How well that is.
    pub health: Health,
    /// What was seen, in one line.
    pub seen: String,
    /// What to do about it; empty if it is good.
    pub advice: String,
}

impl Finding {
    /// All is well with `topic`.
    pub fn good(topic: &'static str, seen: impl Into<String>) -> Self {
        Self { topic, health: Health::Good, seen: seen.into(), advice: String::new() }
    }

    /// Not all that depends on `topic` can be done.
    pub fn limited(
        topic: &'static str,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { topic, health: Health::Limited, seen: seen.into(), advice: advice.into() }
    }

    /// Nothing can be done without `topic`.
    pub fn missing(
        topic: &'static str,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { topic, health: Health::Missing, seen: seen.into(), advice: advice.into() }
    }
}

/// Looks at the host, on which VMs are to run on `backend`.
pub fn examine(backend: &dyn Backend) -> Vec<Finding> {
    let mut findings = kvm::examine();
    findings.extend(memory::examine(backend));
    findings.extend(rights::examine());
    findings.extend(place::examine());
    findings.push(qemu::examine());
    findings.extend(load::examine());
    findings
}
