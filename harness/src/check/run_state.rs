//! Checks that the run state is the one that follows from the steps so far.

use cpr_qmp::run_state::RunState;

use super::{Check, Scene};

/// The `run_state` check.
pub const CHECK: Check = Check {
    name: "run_state",
    claim: "`query-status` is unchanged, except by stop, cont and reset; a former VMM is in `postmigrate`",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    if let Some(transfer) = scene.handover.transfer()
        && transfer.run_state != RunState::Postmigrate
    {
        let told = name(&transfer.run_state);
        return Err(format!("the run state of the former VMM is {told}, must be postmigrate"));
    }
    let (wanted, seen) = (scene.run_state, scene.after.status);
    if seen.status != wanted {
        return Err(format!("the run state is {}, must be {}", name(&seen.status), name(&wanted)));
    }
    if seen.running != wanted.is_running() {
        return Err(format!(
            "query-status contradicts itself: status {}, running {}",
            name(&seen.status),
            seen.running
        ));
    }
    Ok(())
}

/// The name of `state` in QMP.
pub fn name(state: &RunState) -> String {
    serde_json::to_string(state).unwrap_or_default().trim_matches('"').to_owned()
}
