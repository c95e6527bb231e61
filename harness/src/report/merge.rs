//! Several runs as one: shards of the cases, run apart.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::folder::{Folder, FolderError};
use super::record::{Entry, FORMAT, Record, RecordError, Run, theme};
use crate::conform::differences::Differences;
use crate::run::evidence::{VERDICT, folder_name};
use crate::run::start::START;
use crate::scenario::ScenarioError;

/// Why runs cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// Nothing is there.
    #[error("there is no {path}: give files that `run --json` has written, or folders of evidence")]
    Missing {
        /// What was given.
        path: PathBuf,
    },
    /// A file is no record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// An evidence folder cannot be read.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A folder cannot be walked.
    #[error("cannot read {path}: {source}")]
    Walk {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A folder has nothing to merge.
    #[error("there is no evidence of a case in {path}{}", hint(.deeper))]
    Empty {
        /// The folder.
        path: PathBuf,
        /// Folders in it that have.
        deeper: Vec<PathBuf>,
    },
    /// Which of the two counts?
    #[error("{case} is in both {first} and {second}: leave one of them out")]
    Twice {
        /// The case.
        case: String,
        /// One place.
        first: String,
        /// The other.
        second: String,
    },
    /// The embedded list is damaged.
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

/// Runs that were merged, and what is to be said about it.
#[derive(Debug)]
pub struct Merged {
    /// The runs as one.
    pub record: Record,
    /// What the reader should know, each in one line.
    pub remarks: Vec<String>,
}

/// Merges records and folders of evidence.
pub fn merge(paths: &[PathBuf]) -> Result<Merged, MergeError> {
    let mut record = Record { format: FORMAT, runs: Vec::new(), cases: Vec::new() };
    let mut remarks = Vec::new();
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for path in paths {
        let part = match fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(MergeError::Missing { path: path.clone() });
            }
            Ok(meta) if meta.is_dir() => of_folder(path, &mut remarks)?,
            _ => Record::read(path)?,
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
    }
    for (what, of) in [
        ("VMMs", (|run| run.vmm.title.clone()) as fn(&Run) -> String),
        ("harnesses", |run| run.harness.clone()),
        ("kernels", |run| run.kernel.clone()),
    ] {
        remarks.extend(differ(what, &record, of));
    }
    Ok(Merged { record, remarks })
}

/// What differs between the runs, with how many cases each value has.
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

/// The cases whose evidence is in `root`: where a run leaves it, and not what replays and planted
/// bugs have left deeper in.
fn of_folder(root: &Path, remarks: &mut Vec<String>) -> Result<Record, MergeError> {
    let mut folders = Vec::new();
    walk(root, &mut folders)?;
    folders.sort();
    let mut record = Record { format: FORMAT, runs: Vec::new(), cases: Vec::new() };
    let mut differences = Differences::embedded()?;
    let (mut deeper, mut left_out) = (Vec::new(), 0);
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
        add(&mut record, &folder, &mut differences);
    }
    if record.cases.is_empty() {
        return Err(MergeError::Empty { path: root.to_owned(), deeper });
    }
    if left_out > 0 {
        let deeper: Vec<String> = deeper.iter().map(|path| path.display().to_string()).collect();
        let cases = if left_out == 1 { "case" } else { "cases" };
        remarks.push(format!("not counted: {left_out} {cases} in {}", deeper.join(", ")));
    }
    Ok(record)
}

/// What stands before the case's name in the path of its evidence.
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

/// From when the first case began to when the last one ended.
fn extend(run: &mut Run, case: &Run) {
    let ends = [&*run, case].map(|run| run.started_unix + run.took.as_secs_f64());
    run.started_unix = run.started_unix.min(case.started_unix);
    let took = ends[0].max(ends[1]) - run.started_unix;
    run.took = Duration::try_from_secs_f64(took).unwrap_or_default();
}

/// The run of a case without `start.json`.
fn unknown() -> Run {
    let unknown = || "unknown".to_owned();
    let vmm = super::record::Vmm { title: unknown(), version: None, backend: unknown() };
    Run {
        harness: unknown(),
        vmm,
        kernel: unknown(),
        cpus: 0,
        started_unix: 0.0,
        took: Duration::ZERO,
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<(), MergeError> {
    if [START, VERDICT].iter().any(|name| folder.join(name).is_file()) {
        found.push(folder.to_owned());
        return Ok(());
    }
    let cannot = |source| MergeError::Walk { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        // No links: they may lead in a circle.
        if entry.file_type().map_err(cannot)?.is_dir() {
            walk(&entry.path(), found)?;
        }
    }
    Ok(())
}
