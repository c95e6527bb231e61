//! Catalogue of known classes of bugs, each with the scenario that catches it, which is proved by
//! planting the bug.

pub mod lab;
pub mod need;
pub mod random;
pub mod table;
pub mod trial;

use cpr_vmm::failpoints::Plant;
use need::Need;
use serde::Deserialize;

use crate::check;
use crate::scenario::{Case, ScenarioError, tree};

/// Contents of the file at build time.
const EMBEDDED: &str = include_str!("../../../scenarios/bug-classes.toml");
const NAME: &str = "bug-classes.toml";

/// One class of bugs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BugClass {
    /// What goes wrong.
    pub class: String,
    /// A public example.
    pub example: String,
    /// The bug to plant: an argument of the VMM's `--plant`.
    pub planted: String,
    /// The process to plant it in.
    #[serde(default)]
    pub in_process: InProcess,
    /// Most runs of the case until it catches the bug: more than one if an update must hit a window
    /// of microseconds, or if a guest makes allowance for a busy host.
    #[serde(default = "once")]
    pub runs: u32,
    /// What the host must support for the bug to have an effect.
    #[serde(default)]
    pub needs: Option<Need>,
    /// Why no scenario has been seen to catch it, if so.
    #[serde(default)]
    pub unproved: Option<String>,
    /// The case that catches it, or should.
    pub case: String,
    /// The checks that may fail because of it; one of them must.
    pub checks: Vec<String>,
}

/// Which process a bug is planted in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InProcess {
    /// Every process.
    #[default]
    Both,
    /// Only processes that take over a VM.
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

/// Returns all classes.
pub fn all() -> Result<Vec<BugClass>, ScenarioError> {
    parse(EMBEDDED)
}

fn parse(text: &str) -> Result<Vec<BugClass>, ScenarioError> {
    let file: File = tree::from_str(NAME, text)?;
    let wrong = file.class.iter().filter_map(|class| {
        let message = format!("{}: {}", class.planted, class.invalid()?);
        Some(ScenarioError::sense(NAME, message))
    });
    match ScenarioError::all(wrong.collect()) {
        None => Ok(file.class),
        Some(error) => Err(error),
    }
}

impl BugClass {
    /// Returns why this entry is invalid, if it is.
    fn invalid(&self) -> Option<String> {
        let known: Vec<&str> = check::names().collect();
        if let Err(unknown) = self.planted.parse::<Plant>() {
            return Some(unknown.to_string());
        }
        let unknown = self.checks.iter().find(|check| !known.contains(&check.as_str()));
        match unknown {
            Some(check) => Some(format!("unknown check {check}: expected {}", known.join(", "))),
            None => self.checks.is_empty().then(|| "no check is named".to_owned()),
        }
    }

    /// Finds its case among `cases`.
    pub fn find<'a>(&self, cases: &'a [Case]) -> Result<&'a Case, ScenarioError> {
        cases.iter().find(|case| case.name == self.case).ok_or_else(|| {
            let message =
                format!("`{}` names case {}, which does not exist", self.planted, self.case);
            ScenarioError::sense(NAME, message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::set::Set;

    #[test]
    fn every_class_has_a_case_and_a_check_and_every_constraint_a_bug() {
        let cases = Set::embedded().unwrap().cases;
        let mut bugs = Vec::new();
        for class in all().unwrap() {
            class.find(&cases).unwrap();
            bugs.push((class.planted, class.case));
        }
        for number in cpr_vmm::failpoints::CONSTRAINTS {
            let swap = format!("swap-{number}");
            assert!(bugs.iter().any(|(bug, _)| *bug == swap), "constraint {number} has no row");
        }
        for planted in cpr_vmm::failpoints::Planted::ALL {
            let name = planted.name();
            assert!(bugs.iter().any(|(bug, _)| bug == name), "planted bug {name} has no row");
        }
        let all = bugs.len();
        bugs.sort();
        bugs.dedup();
        assert_eq!(bugs.len(), all);
    }

    #[test]
    fn rejects_unknown_bugs_and_checks() {
        let class = |planted: &str, checks: &str| {
            let text = format!(
                "[[class]]\nclass = ''\nexample = ''\ncase = ''\nplanted = '{planted}'\nchecks = {checks}\n"
            );
            parse(&text).map(drop).map_err(|e| e.to_string())
        };
        assert_eq!(class("swap-1", "['ram', 'killed']"), Ok(()));
        let wrong =
            [class("stale-errors", "['ram']"), class("swap-1", "['rom']"), class("swap-1", "[]")];
        let whys = ["unknown bug \"stale-errors\"", "unknown check rom", "no check is named"];
        for (wrong, why) in wrong.into_iter().zip(whys) {
            let told = wrong.unwrap_err();
            assert!(told.contains(why), "{told}");
        }
    }
}
