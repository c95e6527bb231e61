//! The KVM state of a VM, as reported by a VMM that is built with fail points.

use std::collections::BTreeMap;
use std::path::Path;

use cpr_qmp::info::AuditValue;
use cpr_qmp::message::ErrorClass;

use super::qmp::{Qmp, QmpFault};
use crate::observe::facts::Facts;

/// Environment variable with the path from which a VMM derives the files it writes at both ends of
/// an update (extensions `old` and `new`).
pub const FILE_VARIABLE: &str = "CPR_AUDIT";

/// Runs `x-audit` while the guest is stopped; `None` if the VMM has no such command.
pub fn while_stopped(qmp: &mut Qmp) -> Result<Option<Facts>, QmpFault> {
    match qmp.query::<Vec<AuditValue>>("x-audit") {
        Ok(values) => Ok(Some(values.into_iter().map(|value| (value.name, value.value)).collect())),
        Err(QmpFault::Refused { error, .. }) if error.class == ErrorClass::CommandNotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Returns the VM's state before the newest update left the old process, and in the new one before
/// its first `KVM_RUN`; `None` if one of the two was not reached.
pub fn crossing(file: &Path) -> Option<[Facts; 2]> {
    let read = |extension| {
        let path = file.with_extension(extension);
        let text = std::fs::read_to_string(&path);
        // A file left behind would be mistaken for the next update's.
        let _ = std::fs::remove_file(&path);
        let values: BTreeMap<String, String> = serde_json::from_str(&text.ok()?).ok()?;
        Some(values.into_iter().collect::<Facts>())
    };
    let sides = [read("old"), read("new")];
    let [old, new] = sides;
    Some([old?, new?])
}
