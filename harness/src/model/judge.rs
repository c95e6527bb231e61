//! Compares the model with what the VMM shows, after every step of every case.

use serde::{Deserialize, Serialize};

use crate::model::reference::{Model, State};
use crate::scenario::{Case, Step};

/// What was observed after a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The step.
    pub step: String,
    /// `status` of `query-status`.
    pub run_state: String,
    /// `status` of `query-migrate`, if it has one.
    pub migration: Option<String>,
    /// How each update of the step ended: `completed`, `refused` or `failed`.
    #[serde(default)]
    pub endings: Vec<String>,
}

/// Follows a case step by step and compares it with the model.
pub struct Judge {
    model: Model,
    state: State,
}

impl Judge {
    /// Creates the judge of `case`, on a VMM that `rehearses` commands or does not.
    pub fn new(case: &Case, rehearses: bool) -> Self {
        let model = Model::new(&case.vm, rehearses);
        Self { state: model.boot(), model }
    }

    /// Compares after `step`; the error says in what the model and the VMM differ.
    pub fn follow(&mut self, step: &Step, seen: Option<&Observed>) -> Result<(), String> {
        // A soak that ended before its first burst has updated nothing.
        let idle =
            matches!(step, Step::Soak(_)) && seen.is_some_and(|seen| seen.endings.is_empty());
        if !idle {
            self.state = self.model.after(&self.state, step);
        }
        match seen {
            Some(seen) if !matches!(step, Step::Inject(_)) => compare(&self.state, seen),
            _ => Ok(()),
        }
    }
}

/// Checks that the VMM shows what the model predicts.
pub fn compare(state: &State, seen: &Observed) -> Result<(), String> {
    if state.run.name() != seen.run_state {
        return Err(format!(
            "the model expects run state {}, the VMM reports {}",
            state.run.name(),
            seen.run_state
        ));
    }
    let migration = seen.migration.as_deref();
    if !state.migration.allows(migration) {
        return Err(format!(
            "the model expects migration status {}, the VMM reports {}",
            state.migration.name(),
            migration.unwrap_or("nothing")
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse;
    use rstest::rstest;

    const SCENARIO: &str = r#"
summary = ""
steps = [
  "boot",
  { migrate = {} },
  "stop",
  { migrate = { command = "enoent", rehearsal = false, expect = { failed = {} } } },
  { migrate = { channel = "tcp", expect = { refused = "file" } } },
  "reset",
  "cont",
]
"#;

    /// What a VMM must show after each step.
    const SHOWN: [(&str, Option<&str>); 7] = [
        ("running", None),
        ("running", Some("completed")),
        ("paused", Some("completed")),
        ("paused", Some("failed")),
        ("paused", Some("failed")),
        ("prelaunch", Some("failed")),
        ("running", Some("failed")),
    ];

    #[rstest]
    #[case(&[], None, None)]
    #[case(&["completed"], None, Some("the model expects migration status completed, the VMM reports nothing"))]
    #[case(&["completed"], Some("completed"), None)]
    fn a_soak_without_updates_completes_no_migration(
        #[case] endings: &[&str],
        #[case] migration: Option<&str>,
        #[case] why: Option<&str>,
    ) {
        let text = "summary = ''\nsteps = ['boot', { soak = { times = 9 } }]";
        let case = parse::parse("", "a/b", text).unwrap().remove(0);
        let mut judge = Judge::new(&case, true);
        let mut seen = Observed {
            step: String::new(),
            run_state: "running".into(),
            migration: None,
            endings: Vec::new(),
        };
        judge.follow(&case.steps[0], Some(&seen)).unwrap();
        seen.migration = migration.map(str::to_owned);
        seen.endings = endings.iter().map(|ending| (*ending).to_owned()).collect();
        assert_eq!(judge.follow(&case.steps[1], Some(&seen)).err().as_deref(), why);
    }

    /// The first step after which model and VMM differ, and in what.
    fn difference(shown: [(&str, Option<&str>); 7]) -> Option<(usize, String)> {
        let case = parse::parse("", "a/b", SCENARIO).unwrap().remove(0);
        let mut judge = Judge::new(&case, true);
        let mut steps = case.steps.iter().zip(shown).enumerate();
        steps.find_map(|(at, (step, (run_state, migration)))| {
            let seen = Observed {
                step: String::new(),
                run_state: run_state.to_owned(),
                migration: migration.map(str::to_owned),
                endings: Vec::new(),
            };
            Some((at, judge.follow(step, Some(&seen)).err()?))
        })
    }

    #[test]
    fn accepts_a_vmm_that_follows_the_model() {
        assert_eq!(difference(SHOWN), None);
    }

    #[rstest]
    #[case(3, ("running", Some("failed")), "run state paused, the VMM reports running")]
    #[case(4, ("paused", None), "migration status failed, the VMM reports nothing")]
    #[case(5, ("paused", Some("failed")), "run state prelaunch, the VMM reports paused")]
    #[case(1, ("running", Some("failed")), "migration status completed, the VMM reports failed")]
    fn finds_the_first_difference(
        #[case] at: usize,
        #[case] shown: (&'static str, Option<&'static str>),
        #[case] why: &str,
    ) {
        let mut all = SHOWN;
        all[at] = shown;
        assert_eq!(difference(all), Some((at, format!("the model expects {why}"))));
    }
}
