//! Names the ways in which an update ends, in each run state, and what it comes after.

use cpr_qmp::run_state::RunState;

/// How an update ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It completed.
    Completed,
    /// It was refused, so nothing began.
    Refused,
    /// It failed before the guest stopped.
    FailedEarly,
    /// It failed in the old process while the guest was stopped.
    Failed,
    /// The new process failed, and the old binary was executed again.
    FellBack,
    /// The process died in it, and its keeper continued the guest.
    Revived,
}

/// All endings, as they are named in a run state and after another update.
const ENDINGS: [(Ending, &str, &str); 6] = [
    (Ending::Completed, "completed", "completed"),
    (Ending::Refused, "refused", "was refused"),
    (Ending::FailedEarly, "failed before the pause", "failed before the pause"),
    (Ending::Failed, "failed after the pause", "failed after the pause"),
    (Ending::FellBack, "fell back", "fell back"),
    (Ending::Revived, "revived", "was revived"),
];

const STATES: [(RunState, &str); 3] = [
    (RunState::Prelaunch, "prelaunch"),
    (RunState::Paused, "paused"),
    (RunState::Running, "running"),
];

/// An update that has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// How.
    pub how: Ending,
    /// The run state that it had to keep.
    pub run_state: RunState,
    /// How the update before it ended, if there was one.
    pub after: Option<Ending>,
}

fn in_state(ending: &str, state: &str) -> String {
    format!("update {ending} in {state}")
}

/// Whatever an update comes to, the next one must work.
fn completed_after(ending: &str) -> String {
    format!("update completed after one that {ending}")
}

/// Returns the names of all ways.
pub(super) fn all() -> impl Iterator<Item = String> {
    ENDINGS.into_iter().flat_map(|(_, ending, after)| {
        let in_each = STATES.into_iter().map(move |(_, state)| in_state(ending, state));
        in_each.chain([completed_after(after)])
    })
}

/// Returns the names of what `ended` shows.
pub(super) fn items(Ended { how, run_state, after }: Ended) -> Vec<String> {
    let named = |ending| ENDINGS.into_iter().find(|(known, ..)| *known == ending);
    let state = STATES.into_iter().find(|(known, _)| *known == run_state);
    let in_state =
        named(how).zip(state).map(|((_, ending, _), (_, state))| in_state(ending, state));
    let after = after.filter(|_| how == Ending::Completed).and_then(named);
    in_state.into_iter().chain(after.map(|(.., after)| completed_after(after))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ended_is_in_the_list() {
        let all: Vec<String> = all().collect();
        for (how, ..) in ENDINGS {
            for (run_state, _) in STATES {
                for (after, ..) in ENDINGS {
                    let found = items(Ended { how, run_state, after: Some(after) });
                    assert_eq!(found.len(), 1 + usize::from(how == Ending::Completed));
                    assert!(found.iter().all(|item| all.contains(item)), "{found:?}");
                }
            }
        }
        let (how, run_state) = (Ending::Completed, RunState::Running);
        let fell_back = Ended { how, run_state, after: Some(Ending::FellBack) };
        let expected = ["update completed in running", "update completed after one that fell back"];
        assert_eq!(items(fell_back), expected);
    }
}
