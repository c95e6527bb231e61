//! What the catalogue has shown where KVM runs the guest's kernel mode on the CPU:
//! `scenarios/lab-catalogue.toml`, which `catalogue --record` writes.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::BugClass;
use super::trial::Outcome;
use crate::scenario::{ScenarioError, tree};

/// The file's content when this binary was built.
const EMBEDDED: &str = include_str!("../../../scenarios/lab-catalogue.toml");
const NAME: &str = "lab-catalogue.toml";
const HEADER: &str = "\
# The column `lab` of BUG-CLASSES.md: what `catalogue --record` has shown in a lab. Not edited by hand.
";

/// The results of all classes that were tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    #[serde(default)]
    tried: Vec<Tried>,
}

/// The result of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Tried {
    /// The planted bug.
    pub bug: String,
    /// The case that ran.
    pub case: String,
    /// The release of the kernel.
    pub kernel: String,
    /// The checks that caught it; none: no check, or it did not run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caught_by: Vec<String>,
    /// Why it did not run, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_run: Option<String>,
}

/// An error about the record at a path.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read or written.
    #[error("cannot {verb} the record {path}: {source}")]
    File {
        /// What was tried.
        verb: &'static str,
        /// Its path.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// It is not a record.
    #[error(transparent)]
    Invalid(#[from] ScenarioError),
}

impl Record {
    /// Parses the embedded file.
    pub fn embedded() -> Result<Self, ScenarioError> {
        tree::from_str(NAME, EMBEDDED)
    }

    /// Reads the record at `path`; it is empty if there is none yet.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        match fs::read_to_string(path) {
            Ok(text) => Ok(tree::from_str(NAME, &text)?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(RecordError::file("read", path, source)),
        }
    }

    /// Writes the record to `path`.
    pub fn write(&self, path: &Path) -> Result<(), RecordError> {
        let text = toml::to_string(self).map_err(io::Error::other);
        let written = text.and_then(|text| fs::write(path, format!("{HEADER}\n{text}")));
        written.map_err(|source| RecordError::file("write", path, source))
    }

    /// Adds what the planted bug of `class` came to, instead of an earlier result of it.
    pub fn add(&mut self, class: &BugClass, kernel: &str, outcome: &Outcome) {
        let (caught_by, not_run) = match outcome {
            Outcome::Failed { checks, .. } if outcome.is_caught_by(&class.checks) => (
                checks.iter().filter(|check| class.checks.contains(check)).cloned().collect(),
                None,
            ),
            Outcome::NotRun(why) => (Vec::new(), Some(why.clone())),
            Outcome::Passed | Outcome::Failed { .. } => (Vec::new(), None),
        };
        let (bug, case) = (class.planted.clone(), class.case.clone());
        self.tried.retain(|tried| (&tried.bug, &tried.case) != (&bug, &case));
        self.tried.push(Tried { bug, case, kernel: kernel.to_owned(), caught_by, not_run });
        self.tried.sort_by(|a, b| (&a.bug, &a.case).cmp(&(&b.bug, &b.case)));
    }

    /// The result of `class`, if it was tried.
    pub fn of(&self, class: &BugClass) -> Option<&Tried> {
        self.tried.iter().find(|tried| tried.bug == class.planted && tried.case == class.case)
    }

    /// The results of bugs and cases that `classes` does not have.
    pub fn stale<'a>(&'a self, classes: &'a [BugClass]) -> impl Iterator<Item = &'a Tried> {
        self.tried.iter().filter(|tried| {
            !classes.iter().any(|class| class.planted == tried.bug && class.case == tried.case)
        })
    }
}

impl RecordError {
    fn file(verb: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File { verb, path: path.display().to_string(), source }
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.not_run {
            Some(why) => write!(f, "not run: {why}"),
            None if self.caught_by.is_empty() => f.write_str("not caught"),
            None => write!(f, "`{}`", self.caught_by.join("`, `")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::all;

    fn failed(checks: &[&str]) -> Outcome {
        let checks = checks.iter().map(|check| (*check).to_owned()).collect();
        Outcome::Failed { checks, message: String::new() }
    }

    #[test]
    fn the_record_has_only_bugs_of_the_catalogue() {
        let (record, classes) = (Record::embedded().unwrap(), all().unwrap());
        let stale: Vec<&Tried> = record.stale(&classes).collect();
        assert!(stale.is_empty(), "record them again in a lab, or remove them: {stale:?}");
    }

    #[test]
    fn a_new_result_replaces_the_old_one_and_only_expected_checks_catch() {
        let class = all().unwrap().remove(0);
        let expected = class.checks[0].clone();
        let mut record = Record::default();
        let told = |record: &Record| record.of(&class).unwrap().to_string();
        record.add(&class, "6.1", &Outcome::Passed);
        assert_eq!(told(&record), "not caught");
        record.add(&class, "6.1", &failed(&["watchdog"]));
        assert_eq!(told(&record), "not caught");
        record.add(&class, "6.1", &Outcome::NotRun("no CPU".to_owned()));
        assert_eq!(told(&record), "not run: no CPU");
        record.add(&class, "7.3", &failed(&["watchdog", &expected]));
        assert_eq!(told(&record), format!("`{expected}`"));
        assert_eq!(record.tried.len(), 1);
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let class = all().unwrap().remove(0);
        let mut record = Record::read(&path).unwrap();
        record.add(&class, "7.3", &failed(&[&class.checks[0]]));
        record.write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), record);
    }
}
