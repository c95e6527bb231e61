//! Arms the VMM's fail points.

use serde_json::{Value, json};

use crate::coverage;
use crate::observe::qmp::{Command, Qmp, QmpFault};
use crate::scenario::Inject;

/// Arms a fail point in the running VMM, or returns the arguments that arm it in the next one.
pub fn arm(qmp: &mut Qmp, inject: &Inject) -> Result<Vec<String>, QmpFault> {
    let Inject { point, action } = inject;
    coverage::armed(point);
    if in_new(qmp, point)? {
        return Ok(vec!["--failpoint".to_owned(), format!("{point}={action}")]);
    }
    let arguments = json!({ "point": point, "action": action });
    qmp.execute(Command::new("x-set-failpoint", arguments)).map(|_| Vec::new())
}

/// Returns the names of all fail points of the VMM.
pub fn points(qmp: &mut Qmp) -> Result<Vec<String>, QmpFault> {
    let list: Vec<Value> = qmp.query("query-failpoints")?;
    Ok(list.iter().filter_map(|point| point["name"].as_str().map(str::to_owned)).collect())
}

fn in_new(qmp: &mut Qmp, name: &str) -> Result<bool, QmpFault> {
    let list: Vec<Value> = qmp.query("query-failpoints")?;
    Ok(list.iter().any(|point| point["name"] == name && point["in-new"] == true))
}

/// Returns whether the action of this armed point was carried out, according to what the VMM has
/// `logged` since.
pub fn was_hit(inject: &Inject, logged: &str) -> bool {
    let Inject { point, action } = inject;
    let point = format!(" point={point} ");
    // A scenario says `errno=EIO`, the VMM's log `Errno(EIO)`.
    let letters = |text: &str| -> String {
        let letters = text.chars().filter(char::is_ascii_alphanumeric);
        letters.map(|c| c.to_ascii_lowercase()).collect()
    };
    let action = letters(action);
    let hits = logged.lines().filter(|line| line.contains("failpoint") && line.contains(&point));
    let mut done = hits.filter_map(|line| line.split_once(" action="));
    done.any(|(_, done)| letters(done) == action)
}

/// Returns whether the VMM logs when it carries this action out; it does not log short writes.
pub fn is_logged(inject: &Inject) -> bool {
    inject.action != "short-write"
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("save", "errno=EIO", "WARN x: failpoint point=save action=Errno(EIO)", true)]
    #[case("save", "kill-helper", "WARN x: failpoint point=save action=KillHelper", true)]
    #[case("save", "no-fds", "WARN x: failpoint point=save action=NoMemory", false)]
    #[case("save", "panic", "WARN x: failpoint point=pause action=Panic", false)]
    #[case("vcpu", "panic", "WARN x: failpoint point=vcpus action=Panic", false)]
    #[case("save", "panic", "WARN x: point=save action=Panic", false)]
    #[case("save", "panic", "", false)]
    fn hit_matches_point_and_action(
        #[case] point: &str,
        #[case] action: &str,
        #[case] logged: &str,
        #[case] hit: bool,
    ) {
        let inject = Inject { point: point.into(), action: action.into() };
        assert_eq!(was_hit(&inject, &format!("INFO before\n{logged}\nINFO after\n")), hit);
    }
}
