//! Everything that a VMM can be asked has the same answer after a step, but for what is expected.

use super::{Check, Scene};
use crate::observe::queries;

/// The check.
pub const CHECK: Check = Check {
    name: "queries",
    claim: "every query without an argument has the answer it had before, but for what `audits.toml` expects",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let Some(before) = scene.before else { return Ok(()) };
    let mut changes = before.queries.changes(&scene.after.queries);
    changes.retain(|change| !scene.other_build || !queries::is_of_build(&change.item));
    scene.audit("queries", changes)
}
