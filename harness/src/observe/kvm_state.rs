//! What KVM tells of a VM, as a VMM with fail points passes it on.

use std::collections::BTreeMap;
use std::path::Path;

use cpr_qmp::info::AuditValue;
use cpr_qmp::message::ErrorClass;

use super::qmp::{Qmp, QmpFault};
use crate::audit::Facts;

/// Names the file whose neighbours a VMM writes at both ends of an update.
pub const FILE_VARIABLE: &str = "CPR_AUDIT";

/// `x-audit` of a guest that stands still; none of a VMM that has no such command.
pub fn standing(qmp: &mut Qmp) -> Result<Option<Facts>, QmpFault> {
    match qmp.query::<Vec<AuditValue>>("x-audit") {
        Ok(values) => Ok(Some(values.into_iter().map(|value| (value.name, value.value)).collect())),
        Err(QmpFault::Refused { error, .. }) if error.class == ErrorClass::CommandNotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What the VM was before the newest update left the old process, and what it was in the new one
/// before its first `KVM_RUN`. None where one of the two was not reached.
pub fn crossing(file: &Path) -> Option<[Facts; 2]> {
    let read = |extension| {
        let path = file.with_extension(extension);
        let text = std::fs::read_to_string(&path);
        // What is not taken away now would be taken for the next update's.
        let _ = std::fs::remove_file(&path);
        let values: BTreeMap<String, String> = serde_json::from_str(&text.ok()?).ok()?;
        Some(values.into_iter().collect::<Facts>())
    };
    let sides = [read("old"), read("new")];
    let [old, new] = sides;
    Some([old?, new?])
}
