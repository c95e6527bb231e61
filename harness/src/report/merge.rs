//! Merges several runs, such as shards, into one.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::folder::{Folder, FolderError};
use super::last_run::{self, LastRun};
use super::record::{Entry, Record, RecordError, theme};
use super::tested::{Run, Vmm};
use crate::conform::differences::Differences;
use crate::run::evidence::start::START;
use crate::run::evidence::{VERDICT, folder_name};
use crate::scenario::ScenarioError;

/// Why runs cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The path does not exist.
    #[error("{path} does not exist: give files written by `run --json`, or evidence folders")]
    Missing {
        /// The given path.
        path: PathBuf,
    },
    /// A file is not a record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// An evidence folder cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A folder cannot be listed.
    #[error("cannot read {path}: {source}")]
    Walk {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The state of the last run in a folder cannot be read.
    #[error("cannot read {path}: {source}")]
    LastRun {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A folder contains nothing to merge.
    #[error("no evidence of a case in {path}{}", hint(.deeper))]
    Empty {
        /// The folder.
        path: PathBuf,
        /// Folders within it that do contain evidence.
        deeper: Vec<PathBuf>,
    },
    /// A case is there twice.
    #[error("{case} is in both {first} and {second}: leave one of them out")]
    Twice {
        /// The case.
        case: String,
        /// One place.
        first: String,
        /// The other.
        second: String,
    },
    /// The embedded list of differences is invalid.
    #[error(transparent)]
    Differences(#[from] ScenarioError),
}

fn hint(deeper: &[PathBuf]) -> String {
    let names: Vec<String> = deeper.iter().map(|path| path.display().to_string()).collect();
    match names.as_slice() {
        [] => String::new(),
        names => format!(" itself: give {}", names.join(" ")),
    }
}

/// Merged runs, with remarks.
#[derive(Debug)]
pub struct Merged {
    /// The merged record.
    pub record: Record,
    /// What the reader should know, one line each.
    pub remarks: Vec<String>,
}

/// Merges records and evidence folders. With a list of known differences of its own (`known`), the
/// cases of records are judged by that, too; otherwise as their run did.
pub fn merge(paths: &[PathBuf], known: Option<&mut Differences>) -> Result<Merged, MergeError> {
    let mut embedded = Differences::embedded()?;
    let (judges_records, known) = (known.is_some(), known.unwrap_or(&mut embedded));
    let mut record = Record::of(Vec::new());
    let mut remarks = Vec::new();
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for path in paths {
        let part = match fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(MergeError::Missing { path: path.clone() });
            }
            Ok(meta) if meta.is_dir() => of_folder(path, &mut remarks, known)?,
            _ => {
                let mut record = Record::read(path)?;
                if judges_records {
                    judge(&mut record, known);
                }
                record
            }
        };
        let before = record.runs.len();
        for mut entry in part.cases {
            entry.run += before;
            let place = match &entry.evidence {
                Some(evidence) if path.is_dir() => evidence.display().to_string(),
                _ => path.display().to_string(),
            };
            let case = entry.report.case.clone();
            if let Some(first) = places.insert(case.clone(), place.clone()) {
                return Err(MergeError::Twice { case, first, second: place });
            }
            record.cases.push(entry);
        }
        record.runs.extend(part.runs);
        record.not_run.extend(part.not_run);
    }
    // What one part did not run, another may have.
    record.not_run.retain(|case| !places.contains_key(case));
    for (what, of) in [
        ("VMMs", (|run| run.vmm.title.clone()) as fn(&Run) -> String),
        ("harnesses", |run| run.harness.clone()),
        ("kernels", |run| run.kernel.clone()),
    ] {
        remarks.extend(differ(what, &record, of));
    }
    Ok(Merged { record, remarks })
}

/// Finds the known differences of each case again.
fn judge(record: &mut Record, known: &mut Differences) {
    for entry in &mut record.cases {
        let run = record.runs.get(entry.run);
        let of = run.and_then(|run| known.of_failure(&run.vmm.backend, &entry.report));
        entry.known = of.unwrap_or_default();
    }
}

/// Returns the values that differ between the runs, with the number of cases for each.
fn differ(what: &str, record: &Record, of: fn(&Run) -> String) -> Option<String> {
    let mut values: BTreeMap<String, usize> = BTreeMap::new();
    for entry in &record.cases {
        if let Some(run) = record.runs.get(entry.run) {
            *values.entry(of(run)).or_default() += 1;
        }
    }
    let told = |(value, count): (&String, &usize)| match count {
        1 => format!("{value} (1 case)"),
        n => format!("{value} ({n} cases)"),
    };
    (values.len() > 1).then(|| {
        let values: Vec<String> = values.iter().map(told).collect();
        format!("different {what}: {}", values.join(", "))
    })
}

/// Reads the cases whose evidence a run left in `root`, excluding what replays and planted bugs
/// left in deeper folders.
fn of_folder(
    root: &Path,
    remarks: &mut Vec<String>,
    differences: &mut Differences,
) -> Result<Record, MergeError> {
    let mut folders = Vec::new();
    walk(root, &mut folders)?;
    folders.sort();
    let mut record = Record::of(Vec::new());
    let (mut deeper, mut left_out) = (Vec::new(), 0);
    let last = LastRun::read(root);
    let last =
        last.map_err(|source| MergeError::LastRun { path: root.join(last_run::FILE), source })?;
    let last = last.unwrap_or_default();
    let absolute = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
    for path in folders {
        let folder = Folder::read(&path)?;
        let whole = absolute.join(path.strip_prefix(root).unwrap_or(&path));
        let name = folder_name(&folder.name());
        if let Some(base) = base(&whole, &name)
            && !absolute.starts_with(&base)
        {
            left_out += 1;
            let base = root.join(base.strip_prefix(&absolute).unwrap_or(&base));
            if !deeper.contains(&base) {
                deeper.push(base);
            }
            continue;
        }
        // The last run was to run this case, but did not: the evidence is of an earlier one.
        let begun = folder.start.as_ref().map(|start| start.started_unix);
        let is_old = begun.is_some_and(|begun| begun < last.started_unix);
        if !(is_old && last.not_run.contains(&folder.name())) {
            add(&mut record, &folder, differences);
        }
    }
    record.not_run = last.not_run;
    if record.cases.is_empty() && record.not_run.is_empty() {
        return Err(MergeError::Empty { path: root.to_owned(), deeper });
    }
    if left_out > 0 {
        let deeper: Vec<String> = deeper.iter().map(|path| path.display().to_string()).collect();
        let cases = if left_out == 1 { "case" } else { "cases" };
        remarks.push(format!("not counted: {left_out} {cases} in {}", deeper.join(", ")));
    }
    Ok(record)
}

/// Returns the part of an evidence path before the name of the case.
fn base(path: &Path, name: &str) -> Option<PathBuf> {
    path.ends_with(name)
        .then(|| path.ancestors().nth(Path::new(name).components().count()).map(Path::to_owned))?
}

fn add(record: &mut Record, folder: &Folder, differences: &mut Differences) {
    let report = folder.report_or_broken();
    let run = folder.start.as_ref().map(|start| Run::of(start, report.took));
    let run = run.unwrap_or_else(unknown);
    let index = match record.runs.iter().position(|other| other.is_alike(&run)) {
        Some(index) => {
            extend(&mut record.runs[index], &run);
            index
        }
        None => {
            record.runs.push(run);
            record.runs.len() - 1
        }
    };
    let backend = &record.runs[index].vmm.backend;
    record.cases.push(Entry {
        summary: folder.case.as_ref().map(|case| case.summary.clone()).unwrap_or_default(),
        theme: theme(&report.case).to_owned(),
        evidence: Some(folder.path.clone()),
        run: index,
        known: differences.of_failure(backend, &report).unwrap_or_default(),
        report,
    });
}

/// Extends `run` to span from the start of its first case to the end of its last one.
fn extend(run: &mut Run, case: &Run) {
    let ends = [&*run, case].map(|run| run.started_unix + run.took.as_secs_f64());
    run.started_unix = run.started_unix.min(case.started_unix);
    let took = ends[0].max(ends[1]) - run.started_unix;
    run.took = Duration::try_from_secs_f64(took).unwrap_or_default();
}

/// Stands in for the run of a case without `start.json`.
fn unknown() -> Run {
    let unknown = || "unknown".to_owned();
    let vmm = Vmm { title: unknown(), backend: unknown(), ..Vmm::default() };
    Run { harness: unknown(), vmm, kernel: unknown(), ..Run::default() }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), MergeError> {
    if [START, VERDICT].iter().any(|name| folder.join(name).is_file()) {
        found.push(folder.to_owned());
        return Ok(());
    }
    let cannot = |source| MergeError::Walk { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        // Do not follow links: they may form a loop.
        if entry.file_type().map_err(cannot)?.is_dir() {
            walk(&entry.path(), found)?;
        }
    }
    Ok(())
}
