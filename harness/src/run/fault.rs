//! Arming the VMM's fail points.

use serde_json::{Value, json};

use crate::observe::qmp::{Command, Qmp, QmpFault};
use crate::scenario::Inject;

/// Arms a point of the running VMM, or returns the arguments that arm it in the next one.
pub(super) fn arm(qmp: &mut Qmp, inject: &Inject) -> Result<Vec<String>, QmpFault> {
    let Inject { point, action } = inject;
    if in_new(qmp, point)? {
        return Ok(vec!["--failpoint".to_owned(), format!("{point}={action}")]);
    }
    let arguments = json!({ "point": point, "action": action });
    qmp.execute(Command::new("x-set-failpoint", arguments)).map(|_| Vec::new())
}

/// The names of all points of the VMM.
pub fn points(qmp: &mut Qmp) -> Result<Vec<String>, QmpFault> {
    let list: Vec<Value> = qmp.query("query-failpoints")?;
    Ok(list.iter().filter_map(|point| point["name"].as_str().map(str::to_owned)).collect())
}

fn in_new(qmp: &mut Qmp, name: &str) -> Result<bool, QmpFault> {
    let list: Vec<Value> = qmp.query("query-failpoints")?;
    Ok(list.iter().any(|point| point["name"] == name && point["in-new"] == true))
}
