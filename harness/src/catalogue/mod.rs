//! The catalogue of known classes of bugs: for each the scenario that notices it, proved by planting
//! the bug.

pub mod need;
pub mod random;
pub mod table;
pub mod trial;

use need::Need;
use serde::Deserialize;

use crate::scenario::{Case, ScenarioError};

/// The file, as it was when this binary was built.
const EMBEDDED: &str = include_str!("../../../scenarios/bug-classes.toml");
const NAME: &str = "bug-classes.toml";

/// One class of bugs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BugClass {
    /// What goes wrong.
    pub class: String,
    /// Where it went wrong in public.
    pub example: String,
    /// The planted bug, one of the VMM's `--plant`.
    pub planted: String,
    /// Which process has it.
    #[serde(default)]
    pub in_process: InProcess,
    /// How often the case is run at most until it notices: where an update must fall into a window of
    /// microseconds.
    #[serde(default = "once")]
    pub runs: u32,
    /// What the host must be able to for it to show.
    #[serde(default)]
    pub needs: Option<Need>,
    /// Why no scenario has been seen to notice it, where that is so.
    #[serde(default)]
    pub unproved: Option<String>,
    /// The case that notices it, or should.
    pub case: String,
    /// The check of the harness that does; where it is chance which, each that may.
    pub checks: Vec<String>,
}

/// Which process a bug is planted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InProcess {
    /// Every one.
    #[default]
    Both,
    /// Only those that take over.
    New,
}

fn once() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    class: Vec<BugClass>,
}

/// All classes.
pub fn all() -> Result<Vec<BugClass>, ScenarioError> {
    let file: File =
        toml::from_str(EMBEDDED).map_err(|e| ScenarioError::syntax(NAME, EMBEDDED, &e))?;
    Ok(file.class)
}

impl BugClass {
    /// Its case among `cases`.
    pub fn find<'a>(&self, cases: &'a [Case]) -> Result<&'a Case, ScenarioError> {
        cases.iter().find(|case| case.name == self.case).ok_or_else(|| {
            let message =
                format!("`{}` names case {}, which is not there", self.planted, self.case);
            ScenarioError::sense(NAME, message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use crate::scenario::set::Set;

    #[test]
    fn every_class_has_a_case_and_a_check_and_every_constraint_a_bug() {
        let cases = Set::embedded().unwrap().cases;
        let mut bugs = Vec::new();
        for class in all().unwrap() {
            class.find(&cases).unwrap();
            let known = check::ALL.iter().map(|check| check.name);
            let known: Vec<_> = known.chain(["pid", "gone", "step", "killed"]).collect();
            assert!(!class.checks.is_empty());
            assert!(class.checks.iter().all(|c| known.contains(&c.as_str())), "{class:?}");
            bugs.push((class.planted, class.case));
        }
        for number in cpr_vmm::failpoints::constraints() {
            let swap = format!("swap-{number}");
            assert!(bugs.iter().any(|(bug, _)| *bug == swap), "constraint {number} has no row");
        }
        let all = bugs.len();
        bugs.sort();
        bugs.dedup();
        assert_eq!(bugs.len(), all);
    }
}
