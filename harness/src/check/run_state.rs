//! The run state is what the steps so far have made it.

use super::{Check, Scene};

/// The check.
pub const CHECK: Check = Check {
    name: "run_state",
    claim: "`query-status` is as before, but for what stop, cont and reset change",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
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

/// As QMP has it.
pub fn name(state: &cpr_qmp::run_state::RunState) -> String {
    serde_json::to_string(state).unwrap_or_default().trim_matches('"').to_owned()
}
