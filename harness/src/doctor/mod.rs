//! Examines what this host offers the harness, and advises on what is missing.

pub mod kvm;
pub mod load;
pub mod memory;
pub mod place;
pub mod qemu;
pub mod reach;
pub mod rights;

use crate::backend::Backend;

/// The state of one aspect of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// As it should be.
    Good,
    /// Something is ignored, or slower, or measured worse.
    Limited,
    /// Nothing can run.
    Missing,
}

/// What was found about one aspect of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The aspect.
    pub topic: &'static str,
    /// Its state.
    pub health: Health,
    /// What was seen, in one line.
    pub seen: String,
    /// What to do about it; empty if nothing.
    pub advice: String,
}

impl Finding {
    /// A finding that `topic` needs no action.
    pub fn good(topic: &'static str, seen: impl Into<String>) -> Self {
        Self { topic, health: Health::Good, seen: seen.into(), advice: String::new() }
    }

    /// A finding that `topic` limits what can be done.
    pub fn limited(
        topic: &'static str,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { topic, health: Health::Limited, seen: seen.into(), advice: advice.into() }
    }

    /// A finding that `topic`, without which nothing runs, is missing.
    pub fn missing(
        topic: &'static str,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { topic, health: Health::Missing, seen: seen.into(), advice: advice.into() }
    }
}

/// Examines the host, on which VMs are to run on `backend`.
pub fn examine(backend: &dyn Backend) -> Vec<Finding> {
    let mut findings = kvm::examine();
    findings.extend(memory::examine(backend));
    findings.extend(rights::examine());
    findings.extend(place::examine());
    findings.push(qemu::examine());
    findings.extend(load::examine());
    findings
}
