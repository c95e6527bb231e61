//! The record of a run: all that reports are made of, as one JSON file.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::run::evidence::folder_name;
use crate::run::start::{Start, cpus, kernel, unix_now};
use crate::run::{Options, Report, Verdict};
use crate::scenario::Case;

/// The number of the format that is written; any older one can be read.
pub const FORMAT: u32 = 1;

/// One run, or several that were merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`FORMAT`] of the harness that wrote it.
    pub format: u32,
    /// On what the cases were run.
    pub runs: Vec<Run>,
    /// The cases, in the order in which they ended.
    pub cases: Vec<Entry>,
}

/// On what cases were run, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The harness's version.
    pub harness: String,
    /// The VMM.
    pub vmm: Vmm,
    /// The host's kernel.
    pub kernel: String,
    /// CPUs that the harness could use.
    pub cpus: usize,
    /// When it began, in seconds since 1970.
    pub started_unix: f64,
    /// How long it took.
    pub took: Duration,
}

/// A VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vmm {
    /// Its name and version, for people.
    pub title: String,
    /// Its version, where it has told one.
    pub version: Option<String>,
    /// Its kind.
    pub backend: String,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// What it shows, in one line.
    pub summary: String,
    /// The part of its name before the slash.
    pub theme: String,
    /// The evidence folder, from the folder of the record where that is possible.
    pub evidence: Option<PathBuf>,
    /// Which of the runs.
    pub run: usize,
    /// It failed as its VMM is known to, by the names of those differences from ours.
    #[serde(default)]
    pub known: BTreeSet<String>,
    /// The report.
    pub report: Report,
}

/// Why there is no record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file cannot be read or written.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It is JSON, or not even that.
    #[error("{path} is no record of a run, as `run --json` writes it: {source}")]
    NotARecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It is from a later harness.
    #[error(
        "{path} has format {found}, and this harness knows up to {FORMAT}: take a newer harness"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its number.
        found: u32,
    },
    /// It contradicts itself.
    #[error("{path} is damaged: case {case} is of run {run}, and there are {runs}")]
    NoSuchRun {
        /// The file.
        path: PathBuf,
        /// The case.
        case: String,
        /// The run that it names.
        run: usize,
        /// How many there are.
        runs: usize,
    },
}

impl Run {
    /// One that begins now.
    pub fn now(options: &Options) -> Self {
        let vmm = Vmm {
            title: options.backend.title(),
            version: options.backend.version().map(str::to_owned),
            backend: options.backend.name().to_owned(),
        };
        Self {
            harness: env!("CARGO_PKG_VERSION").to_owned(),
            vmm,
            kernel: kernel(),
            cpus: cpus(),
            started_unix: unix_now(),
            took: Duration::ZERO,
        }
    }

    /// That of a case on its own.
    pub fn of(start: &Start, took: Duration) -> Self {
        let vmm = Vmm {
            title: start.title(),
            version: start.vmm_version.clone(),
            backend: start.backend.clone(),
        };
        Self {
            harness: start.harness.clone(),
            vmm,
            kernel: start.kernel.clone(),
            cpus: start.cpus,
            started_unix: start.started_unix,
            took,
        }
    }

    /// The same VMM, tried by the same harness on the same machine.
    pub fn is_alike(&self, other: &Self) -> bool {
        let what =
            |run: &Self| (run.harness.clone(), run.vmm.clone(), run.kernel.clone(), run.cpus);
        what(self) == what(other)
    }
}

impl Entry {
    /// It failed, and not as is known of its VMM.
    pub fn failed(&self) -> bool {
        matches!(self.report.verdict, Verdict::Fail(_)) && self.known.is_empty()
    }
}

/// What a case is about.
pub fn theme(case: &str) -> &str {
    case.split_once('/').map_or("", |(theme, _)| theme)
}

impl Record {
    /// Of a run that has just begun.
    pub fn new(run: Run) -> Self {
        Self { format: FORMAT, runs: vec![run], cases: Vec::new() }
    }

    /// One case of the first run is done; its evidence, if it left any, is in the folder `evidence`.
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
            // One that was ignored has left none; what may be there is of an earlier run.
            evidence: (!matches!(report.verdict, Verdict::Ignored(_)) && folder.is_dir())
                .then_some(folder),
            run: 0,
            known: known.clone().unwrap_or_default(),
            report: report.clone(),
        });
    }

    /// Reads the file at `path`; its evidence folders are then as this process finds them.
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
        // What a newer format has in it is not known.
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

    /// How long it took; of runs that were merged, all together.
    pub fn took(&self) -> Duration {
        self.runs.iter().map(|run| run.took).sum()
    }
}

/// Writes a report to `path`.
pub fn write(path: &Path, text: &str) -> Result<(), RecordError> {
    let file = |source| RecordError::File { what: "write", path: path.to_owned(), source };
    std::fs::write(path, text).map_err(file)
}

/// `target` as it is found from the folder of the file `file`; absolute if there is no other way.
pub fn from_file(file: &Path, target: &Path) -> PathBuf {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (file, target) = (absolute(file), absolute(target));
    let from = file.parent().unwrap_or(Path::new("/"));
    let shared = from.components().zip(target.components()).take_while(|(a, b)| a == b).count();
    // The root alone in common: two trees that are moved apart.
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
    fn what_is_no_json_is_an_error_and_no_empty_file() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.json");
        let run = Run {
            harness: String::new(),
            vmm: Vmm { title: String::new(), version: None, backend: String::new() },
            kernel: String::new(),
            cpus: 1,
            started_unix: 0.0,
            took: Duration::ZERO,
        };
        let mut record = Record::new(run);
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

    #[rstest]
    #[case("{}", "x.json is no record of a run, as `run --json` writes it: missing field `format`")]
    #[case("{\"format\": 1}", "missing field `runs`")]
    #[case("[", "EOF while parsing")]
    #[case(
        "{\"format\": 2, \"whatever\": []}",
        "x.json has format 2, and this harness knows up to 1: take a newer harness"
    )]
    fn what_is_no_record_is_told(#[case] text: &str, #[case] why: &str) {
        let told = Record::parse(Path::new("x.json"), text).unwrap_err().to_string();
        assert!(told.contains(why), "{told}");
    }
}
