//! Tells how an update ended, in more detail than the checks need.

use cpr_qmp::message::Event;

use crate::check::{self, Action, Handover};
use crate::coverage::endings::Ending;

/// In the error of an update whose new process failed, and that was undone by the old binary.
const ROLLED_BACK: &str = "rolled back to the old VMM";

/// Returns how the update of `action` ended, if it is one.
pub(super) fn of(action: &Action, handover: &Handover, events: &[Event]) -> Option<Ending> {
    if handover.revival().is_some() {
        return action.may_update().then_some(Ending::Revived);
    }
    // `active` follows the pause.
    let paused = |event: &Event| {
        let status = event.data.as_ref().and_then(|data| data.get("status"));
        event.event == "MIGRATION" && status.is_some_and(|status| status == "active")
    };
    Some(match action.ending()? {
        check::Ending::Completed => Ending::Completed,
        check::Ending::Refused(_) => Ending::Refused,
        check::Ending::Failed(error) if error.contains(ROLLED_BACK) => Ending::FellBack,
        check::Ending::Failed(_) if events.iter().any(paused) => Ending::Failed,
        check::Ending::Failed(_) | check::Ending::Cancelled => Ending::FailedEarly,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::scenario::{Expect, Mode};

    #[rstest]
    #[case::refused(check::Ending::Refused("no".into()), &["setup"], Ending::Refused)]
    #[case::early(check::Ending::Failed("no".into()), &["setup", "failed"], Ending::FailedEarly)]
    #[case::late(check::Ending::Failed("no".into()), &["active", "failed"], Ending::Failed)]
    #[case::undone(check::Ending::Failed(format!("x {ROLLED_BACK}: y")), &["active"], Ending::FellBack)]
    #[case::done(check::Ending::Completed, &["active", "completed"], Ending::Completed)]
    fn endings(#[case] ending: check::Ending, #[case] statuses: &[&str], #[case] expected: Ending) {
        let culprit = String::new();
        let (mode, expect) = (Mode::CprExec, Expect::Survives);
        let action = Action::Update { mode, expect, ending, culprit, errno: None };
        let event = |status: &&str| Event::now("MIGRATION", Some(json!({ "status": status })));
        let events: Vec<Event> = statuses.iter().map(event).collect();
        assert_eq!(of(&action, &Handover::SameProcess, &events), Some(expected));
        assert_eq!(of(&Action::Stop, &Handover::SameProcess, &events), None);
    }
}
