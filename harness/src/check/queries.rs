//! Checks that every query has the same answer after a step, apart from expected differences.

use super::{Check, Scene};
use crate::observe::queries;

/// The `queries` check.
pub const CHECK: Check = Check {
    name: "queries",
    claim: "every query without arguments has the same answer as before, apart from what `audits.toml` expects",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    let Some(before) = scene.before else { return Ok(()) };
    let mut changes = before.queries.changes(&scene.after.queries);
    let of_build = |item: &str| queries::is_of_build(item, &before.queries, &scene.after.queries);
    changes.retain(|change| !scene.other_build || !of_build(&change.item));
    // An operator sets up each VMM for its updates; the check `migrate_status` judges the mode.
    let new = scene.handover.transfer().is_some();
    changes.retain(|change| !new || !queries::is_of_migration(&change.item));
    scene.audit("queries", changes)
}
