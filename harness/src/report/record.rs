//! The record of a run: the source of all reports, as one JSON file.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::tested::Run;
use crate::run::evidence::folder_name;
use crate::run::{Report, Verdict};
use crate::scenario::Case;

/// Version of the format that is written; older ones can be read.
pub const FORMAT: u32 = 1;

/// One run, or several that were merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`] of the harness that wrote it.
    pub format: u32,
    /// What the cases were run on.
    pub runs: Vec<Run>,
    /// The cases, in the order in which they ended.
    pub cases: Vec<Entry>,
    /// Cases of the run that did not begin or were interrupted, by name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub not_run: BTreeSet<String>,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What it shows, in one line.
    pub summary: String,
    /// The part of its name before the slash.
    pub theme: String,
    /// The evidence folder, relative to the record's folder if possible.
    pub evidence: Option<PathBuf>,
    /// Index into the runs.
    pub run: usize,
    /// The known differences of its VMM from ours that explain the failure, by name; else empty.
    #[serde(default)]
    pub known: BTreeSet<String>,
    /// The report.
    pub report: Report,
}

/// Why a record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read or written.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is not a record: invalid JSON, or JSON of another kind.
    #[error("{path} was not written by `run --json`: {source}")]
    NotARecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It is from a later harness.
    #[error(
        "{path} has format {found}, but this harness reads formats up to {FORMAT}: use a newer harness"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version of its format.
        found: u32,
    },
    /// A case refers to a run that is not in the record.
    #[error("{path} is damaged: case {case} refers to run {run}, but there are only {runs} runs")]
    NoSuchRun {
        /// The file.
        path: PathBuf,
        /// The case.
        case: String,
        /// The index of the run that it refers to.
        run: usize,
        /// The number of runs.
        runs: usize,
    },
}

impl Entry {
    /// True if it failed, and not just because of known differences.
    pub fn failed(&self) -> bool {
        matches!(self.report.verdict, Verdict::Fail(_)) && self.known.is_empty()
    }
}

/// Returns the theme of a case: the part of its name before the slash.
pub fn theme(case: &str) -> &str {
    case.split_once('/').map_or("", |(theme, _)| theme)
}

impl Record {
    /// Creates a record without cases.
    pub fn of(runs: Vec<Run>) -> Self {
        Self { format: FORMAT, runs, cases: Vec::new(), not_run: BTreeSet::new() }
    }

    /// Creates the empty record of a run.
    pub fn new(run: Run) -> Self {
        Self::of(vec![run])
    }

    /// Adds a finished case of the first run; its evidence, if any, is in the folder `evidence`.
    pub fn add(
        &mut self,
        case: &Case,
        report: &Report,
        known: &Option<BTreeSet<String>>,
        evidence: &Path,
    ) {
        let folder = evidence.join(folder_name(&case.name));
        self.cases.push(Entry {
            summary: case.summary.clone(),
            theme: theme(&case.name).to_owned(),
            // An ignored case leaves no evidence: what is there is from an earlier run.
            evidence: (!matches!(report.verdict, Verdict::Ignored(_)) && folder.is_dir())
                .then_some(folder),
            run: 0,
            known: known.clone().unwrap_or_default(),
            report: report.clone(),
        });
    }

    /// Reads the file at `path`, and resolves its evidence paths against its folder.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let file = |source| RecordError::File { what: "read", path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(file)?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let wrong = |source| RecordError::NotARecord { path: path.to_owned(), source };
        // Checked first: a newer format may contain anything.
        let Format { format: found } = serde_json::from_str(text).map_err(wrong)?;
        if found > FORMAT {
            return Err(RecordError::Newer { path: path.to_owned(), found });
        }
        let mut record: Self = serde_json::from_str(text).map_err(wrong)?;
        let runs = record.runs.len();
        let beside = path.parent().unwrap_or(Path::new(""));
        for entry in &mut record.cases {
            if entry.run >= runs {
                let (case, run) = (entry.report.case.clone(), entry.run);
                return Err(RecordError::NoSuchRun { path: path.to_owned(), case, run, runs });
            }
            entry.evidence = entry.evidence.take().map(|evidence| beside.join(evidence));
        }
        Ok(record)
    }

    /// Writes it to `path`.
    pub fn write(&self, path: &Path) -> Result<(), RecordError> {
        let mut record = self.clone();
        for entry in &mut record.cases {
            entry.evidence = entry.evidence.take().map(|evidence| from_file(path, &evidence));
        }
        let text = serde_json::to_string_pretty(&record).map_err(|e| RecordError::File {
            what: "write",
            path: path.to_owned(),
            source: io::Error::other(e),
        })?;
        write(path, &(text + "\n"))
    }

    /// Total duration of all runs.
    pub fn took(&self) -> Duration {
        self.runs.iter().map(|run| run.took).sum()
    }
}

/// Writes a report to `path`: a regular file as a whole or not at all, since this process may be killed.
pub fn write(path: &Path, text: &str) -> Result<(), RecordError> {
    let file = |source| RecordError::File { what: "write", path: path.to_owned(), source };
    // A device, a pipe or a link is not replaced.
    let written = match std::fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => std::fs::write(path, text),
        _ => replace(path, text),
    };
    written.map_err(file)
}

/// Replaces a file by one with this text, or leaves it as it was.
pub fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, path)).inspect_err(|_| {
        // On a full disk, the part that was written takes space.
        let _ = std::fs::remove_file(&new);
    })
}

/// Returns `target` relative to the folder of `file`, or absolute if they share only the root.
pub fn from_file(file: &Path, target: &Path) -> PathBuf {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (file, target) = (absolute(file), absolute(target));
    let from = file.parent().unwrap_or(Path::new("/"));
    let shared = from.components().zip(target.components()).take_while(|(a, b)| a == b).count();
    // With only the root in common, the two trees may be moved independently.
    if shared <= 1 {
        return target;
    }
    let up = from.components().skip(shared).map(|_| Path::new(".."));
    up.chain(target.components().skip(shared).map(|c| Path::new(c.as_os_str()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("/a/b/report.html", "/a/b/evidence/x", "evidence/x")]
    #[case("/a/public/report.html", "/a/evidence/x", "../evidence/x")]
    #[case("/srv/report.html", "/tmp/evidence/x", "/tmp/evidence/x")]
    fn evidence_is_found_from_the_report(
        #[case] file: &str,
        #[case] target: &str,
        #[case] found: &str,
    ) {
        assert_eq!(from_file(Path::new(file), Path::new(target)), Path::new(found));
    }

    #[test]
    fn a_failed_write_leaves_no_empty_file() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.json");
        let mut record = Record::new(Run::default());
        record.cases.push(Entry {
            summary: String::new(),
            theme: String::new(),
            evidence: Some(folder.path().join(std::ffi::OsStr::from_bytes(b"\xff"))),
            run: 0,
            known: BTreeSet::new(),
            report: Report::of("a/b", String::new(), String::new()),
        });
        let told = record.write(&file).unwrap_err().to_string();
        assert!(told.starts_with("cannot write ") && told.contains("UTF-8"), "{told}");
        assert!(!file.exists());
    }

    #[test]
    fn report_is_written_as_a_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.json");
        let names = || std::fs::read_dir(folder.path()).unwrap().count();
        write(&file, "old").unwrap();
        // An open file keeps what it had, so the new text is in another one.
        let old = std::fs::File::open(&file).unwrap();
        write(&file, "new").unwrap();
        assert_eq!(io::read_to_string(old).unwrap(), "old");
        assert_eq!((std::fs::read_to_string(&file).unwrap(), names()), ("new".to_owned(), 1));
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir_all(file.join("deeper")).unwrap();
        replace(&file, "text").unwrap_err();
        assert_eq!(names(), 1);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        write(&link, "text").unwrap();
        assert!(link.is_symlink());
    }

    #[rstest]
    #[case("{}", "x.json was not written by `run --json`: missing field `format`")]
    #[case("{\"format\": 1}", "missing field `runs`")]
    #[case("[", "EOF while parsing")]
    #[case(
        "{\"format\": 2, \"whatever\": []}",
        "x.json has format 2, but this harness reads formats up to 1: use a newer harness"
    )]
    fn rejects_other_files(#[case] text: &str, #[case] why: &str) {
        let told = Record::parse(Path::new("x.json"), text).unwrap_err().to_string();
        assert!(told.contains(why), "{told}");
    }
}
