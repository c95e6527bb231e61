//! Checks that `query-migrate` and the migration parameters agree with the events.

use serde_json::Value;

use super::{Check, Scene};

/// The `migrate_status` check.
pub const CHECK: Check = Check {
    name: "migrate_status",
    claim: "`query-migrate` and the migration parameters agree with the events",
    run,
};

fn run(scene: &Scene<'_>) -> Result<(), String> {
    if let Some(transfer) = scene.handover.transfer()
        && transfer.migration.as_deref() != Some("completed")
    {
        let told = transfer.migration.as_deref().unwrap_or("nothing");
        return Err(format!("query-migrate of the former VMM says {told}, must be completed"));
    }
    let migrate = &scene.after.migrate;
    let status = migrate.get("status").and_then(Value::as_str);
    if status != scene.last_status {
        let tell = |s: Option<&str>| s.unwrap_or("nothing").to_owned();
        return Err(format!(
            "query-migrate says {}, the last MIGRATION event said {}",
            tell(status),
            tell(scene.last_status)
        ));
    }
    let error = migrate.get("error-desc").and_then(Value::as_str);
    if (status == Some("failed")) != error.is_some() {
        return Err(format!(
            "query-migrate says {migrate}: status and error-desc contradict each other"
        ));
    }
    let blocked = migrate.get("blocked-reasons").and_then(Value::as_array);
    let blocked: Vec<&str> = blocked.into_iter().flatten().filter_map(Value::as_str).collect();
    // A migration in mode `normal`, which is the default, copies RAM.
    let copies = scene.after.parameters.get("mode").and_then(Value::as_str) == Some("normal");
    let blocks = !scene.vm.share && scene.dialect.private_ram_blocks && !copies;
    if blocks == blocked.is_empty() {
        return Err(format!(
            "RAM is {}, and query-migrate lists these blockers in this mode: {blocked:?}",
            if scene.vm.share { "shared" } else { "private" }
        ));
    }
    if scene.action.updated() { parameters(&scene.after.parameters) } else { Ok(()) }
}

/// Checks that a successful update has reset the parameters.
fn parameters(parameters: &Value) -> Result<(), String> {
    let mode = parameters.get("mode").and_then(Value::as_str);
    if mode != Some("normal") {
        return Err(format!("after an update `mode` is {mode:?}, must be \"normal\""));
    }
    match parameters.get("cpr-exec-command") {
        None => Ok(()),
        Some(Value::Array(words)) if words.is_empty() => Ok(()),
        Some(other) => Err(format!("after an update `cpr-exec-command` is still {other}")),
    }
}
