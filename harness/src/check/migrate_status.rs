//! Checks that `query-migrate` and the migration parameters agree with the events.

use serde_json::Value;

use super::{Check, Scene};
use crate::scenario::{Mode, Vm};

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
    if let Some(transfer) = scene.handover.transfer()
        && transfer.mode == Mode::Normal
        && scene.dialect.counts_copied_ram
    {
        copied(&transfer.ram, scene.vm.memory.0)
            .map_err(|why| format!("query-migrate of the former VMM: {why}: {}", transfer.ram))?;
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
    let mode = scene.after.parameters.get("mode").and_then(Value::as_str).unwrap_or_default();
    let blocks = scene.dialect.private_ram_blocks && would_lose_ram(mode, scene.vm);
    if blocks == blocked.is_empty() {
        return Err(format!(
            "RAM is {}, and query-migrate lists these blockers in mode {mode}: {blocked:?}",
            match scene.vm {
                Vm { memory_file: true, .. } => "in a file",
                Vm { share: true, .. } => "shared",
                _ => "private",
            }
        ));
    }
    if scene.action.updated() { parameters(&scene.after.parameters) } else { Ok(()) }
}

/// Checks the statistics of a VMM that has copied `bytes` of RAM.
fn copied(ram: &Value, bytes: u64) -> Result<(), &'static str> {
    let number = |name: &str| ram.get(name).and_then(Value::as_u64);
    match () {
        () if number("remaining") != Some(0) => Err("`remaining` must be 0"),
        () if number("total") < Some(bytes) => Err("`total` is less than the guest has"),
        () if number("transferred") < Some(1) => Err("`transferred` must not be 0"),
        () if number("dirty-sync-count") < Some(1) => Err("`dirty-sync-count` must not be 0"),
        () => Ok(()),
    }
}

/// Whether RAM of `vm` would be lost in this mode.
fn would_lose_ram(mode: &str, vm: &Vm) -> bool {
    match mode {
        // RAM is copied.
        "normal" => false,
        "cpr-reboot" => !vm.memory_file,
        _ => !vm.share,
    }
}

/// Checks that a successful update has reset the parameters.
fn parameters(parameters: &Value) -> Result<(), String> {
    let mode = parameters.get("mode").and_then(Value::as_str);
    if mode != Some("normal") {
        return Err(format!("after an update `mode` is {mode:?}, must be \"normal\""));
    }
    for (name, default) in [("downtime-limit", 300), ("max-bandwidth", 128 << 20)] {
        let is = parameters.get(name).and_then(Value::as_u64);
        if is.is_some_and(|is| is != default) {
            return Err(format!("after an update `{name}` is {is:?}, must be {default}"));
        }
    }
    match parameters.get("cpr-exec-command") {
        None => Ok(()),
        Some(Value::Array(words)) if words.is_empty() => Ok(()),
        Some(other) => Err(format!("after an update `cpr-exec-command` is still {other}")),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::all(0, 64, 70, 2, true)]
    #[case::all_and_firmware(0, 65, 70, 1, true)]
    #[case::not_all(1, 64, 70, 2, false)]
    #[case::too_small(0, 63, 70, 2, false)]
    #[case::nothing_sent(0, 64, 0, 2, false)]
    #[case::never_looked(0, 64, 70, 0, false)]
    fn statistics_of_a_copy(
        #[case] remaining: u64,
        #[case] total: u64,
        #[case] transferred: u64,
        #[case] syncs: u64,
        #[case] good: bool,
    ) {
        let ram = json!({
            "remaining": remaining,
            "total": total,
            "transferred": transferred,
            "dirty-sync-count": syncs,
        });
        assert_eq!(copied(&ram, 64).is_ok(), good);
        assert!(copied(&Value::Null, 64).is_err());
    }

    #[rstest]
    #[case("normal", false, false, false)]
    #[case("cpr-exec", true, false, false)]
    #[case("cpr-transfer", false, false, true)]
    #[case("cpr-reboot", true, false, true)]
    #[case("cpr-reboot", true, true, false)]
    fn modes_that_lose_ram(
        #[case] mode: &str,
        #[case] share: bool,
        #[case] memory_file: bool,
        #[case] loses: bool,
    ) {
        assert_eq!(would_lose_ram(mode, &Vm { share, memory_file, ..Vm::default() }), loses);
    }

    #[test]
    fn an_update_resets_every_parameter() {
        let reset = json!({ "mode": "normal", "cpr-exec-command": [], "downtime-limit": 300 });
        assert_eq!(parameters(&reset), Ok(()));
        for (name, value) in [
            ("mode", json!("cpr-exec")),
            ("cpr-exec-command", json!(["vmm"])),
            ("downtime-limit", json!(1000)),
            ("max-bandwidth", json!(0)),
        ] {
            let mut kept = reset.clone();
            kept[name] = value;
            assert!(parameters(&kept).is_err(), "{name}");
        }
    }
}
