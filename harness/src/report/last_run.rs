//! What the last run with an evidence folder left undone: which cases failed, and which did not run.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::record;
use crate::run::evidence::start::unix_now;

/// The file, in the folder for evidence.
pub const FILE: &str = "last-run.json";

/// The state of the last run, by the names of cases.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LastRun {
    /// When it began, in seconds since 1970; older evidence is of another run.
    pub started_unix: f64,
    /// Cases that failed or could not be run.
    pub failed: BTreeSet<String>,
    /// Cases that did not begin or were interrupted.
    pub not_run: BTreeSet<String>,
}

impl LastRun {
    /// Creates the state of a run of `cases` before it begins.
    pub fn new(cases: impl Iterator<Item = String>) -> Self {
        Self { started_unix: unix_now(), failed: BTreeSet::new(), not_run: cases.collect() }
    }

    /// Removes cases that no longer exist.
    pub fn without(mut self, gone: &[String]) -> Self {
        for case in gone {
            self.failed.remove(case);
            self.not_run.remove(case);
        }
        self
    }

    /// Continues this run with `cases`, in another run.
    pub fn continued(mut self, cases: impl Iterator<Item = String>) -> Self {
        for case in cases {
            self.failed.remove(&case);
            self.not_run.insert(case);
        }
        self
    }

    /// Notes the end of a case, or of one round of it; `case` is its name without the round.
    pub fn ended(&mut self, case: &str, failed: bool) {
        self.not_run.remove(case);
        if failed {
            self.failed.insert(case.to_owned());
        }
    }

    /// Reads the state of the last run with the evidence folder `evidence`, if there was one.
    pub fn read(evidence: &Path) -> io::Result<Option<Self>> {
        match std::fs::read_to_string(evidence.join(FILE)) {
            Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Writes the state to the evidence folder `evidence`.
    pub fn write(&self, evidence: &Path) -> io::Result<()> {
        std::fs::create_dir_all(evidence)?;
        // As a whole: this process may be killed.
        record::replace(&evidence.join(FILE), &(serde_json::to_string_pretty(self)? + "\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_continued_run_keeps_what_failed_before() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(LastRun::read(folder.path()).unwrap(), None);
        let mut run = LastRun::new(names(&["a", "b", "c"]).into_iter());
        run.ended("a", true);
        run.ended("b", true);
        run.write(folder.path()).unwrap();
        let read = LastRun::read(folder.path()).unwrap().unwrap();
        assert_eq!(read, run);
        let mut run = read.continued(names(&["b", "c"]).into_iter());
        assert_eq!((&run.failed, &run.not_run), (&names(&["a"]), &names(&["b", "c"])));
        run.ended("b", false);
        run.ended("c", false);
        assert_eq!((run.failed, run.not_run), (names(&["a"]), names(&[])));
    }
}
