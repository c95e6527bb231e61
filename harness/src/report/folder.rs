//! Reads an evidence folder, which may be incomplete if a VMM or harness was killed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::run::evidence::start::{START, Start};
use crate::run::evidence::timeline::{self, Entry, OLDER, TIMELINE};
use crate::run::evidence::{CASE, VERDICT};
use crate::run::{Report, Verdict};
use crate::scenario::{Case, ScenarioError, parse};

/// Logs that are copied to the timeline periodically, with their source.
const LOGS: [(&str, &str); 3] =
    [("vmm", "vmm.log"), ("console", "console.log"), ("serial", "serial.log")];

/// Why an evidence folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It is not an evidence folder.
    #[error(
        "{folder} is not an evidence folder: {file} is missing; `run` leaves one for each case in --evidence, such as evidence/update/stopped"
    )]
    NotEvidence {
        /// The given path.
        folder: PathBuf,
        /// The missing file.
        file: &'static str,
    },
    /// A file in it cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The case in it is invalid.
    #[error(transparent)]
    Case(#[from] ScenarioError),
}

/// The contents of an evidence folder.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Path of the folder.
    pub path: PathBuf,
    /// The case.
    pub case: Option<Case>,
    /// What it was run on.
    pub start: Option<Start>,
    /// The report.
    pub report: Option<Report>,
    /// The timeline, in order.
    pub timeline: Vec<Entry>,
    /// What is missing or damaged, one line each.
    pub problems: Vec<String>,
}

impl Folder {
    /// Reads the folder at `path`.
    pub fn read(path: &Path) -> Result<Self, FolderError> {
        let not_evidence = |file| FolderError::NotEvidence { folder: path.to_owned(), file };
        let mut problems = Vec::new();
        if !path.is_dir() {
            return Err(not_evidence(START));
        }
        let start = expected(path, START, &mut problems)?;
        let start: Option<Start> = start.and_then(|text| json(&text, START, &mut problems));
        let case = match optional(path, CASE)? {
            None => {
                problems.push(format!("{CASE} is missing: cannot replay it"));
                None
            }
            Some(text) => match parse::parse_case(CASE, &text) {
                Ok(case) => Some(case),
                Err(e) => {
                    problems.push(format!("cannot read the case: {e}"));
                    None
                }
            },
        };
        let report = match optional(path, VERDICT)? {
            Some(text) => json(&text, VERDICT, &mut problems),
            None => {
                problems.push(format!(
                    "{VERDICT} is missing: the harness was terminated during the case"
                ));
                None
            }
        };
        // Exists if a soak was killed.
        let mut text = optional(path, OLDER)?.unwrap_or_default();
        text.push_str(&expected(path, TIMELINE, &mut problems)?.unwrap_or_default());
        let (mut entries, damaged) = timeline::parse(&text);
        if damaged > 0 {
            problems.push(format!("{TIMELINE}: {} cut off or damaged", lines(damaged)));
        }
        if report.is_none() {
            for (source, name) in LOGS {
                let text = optional(path, name)?.unwrap_or_default();
                let late = late(&entries, source, &text);
                if !late.is_empty() {
                    problems.push(format!(
                        "{} of {name} not yet in {TIMELINE}: added here",
                        lines(late.len())
                    ));
                }
                entries.extend(late);
            }
            entries.sort_by(|a, b| a.t.total_cmp(&b.t));
        }
        if start.is_none() && case.is_none() && report.is_none() && entries.is_empty() {
            return Err(not_evidence(START));
        }
        Ok(Self { path: path.to_owned(), case, start, report, timeline: entries, problems })
    }

    /// The name of the case.
    pub fn name(&self) -> String {
        let of_case = self.case.as_ref().map(|case| case.name.clone());
        let of_report = || self.report.as_ref().map(|report| report.case.clone());
        let of_start = || self.start.as_ref().map(|start| start.case.clone());
        of_case.or_else(of_report).or_else(of_start).unwrap_or_else(|| "unknown case".to_owned())
    }

    /// The report, or a broken one if the case has no verdict.
    pub fn report_or_broken(&self) -> Report {
        self.report.clone().unwrap_or_else(|| {
            let folder = crate::run::case::quoted(&self.path.to_string_lossy());
            let option = self.start.as_ref().map_or("", |start| start.vmm_option.as_str());
            let replay = format!("cpr-harness replay {folder}{option}");
            let show = format!("cpr-harness show {folder}");
            let why = format!("no verdict in {}: the run was interrupted", self.path.display());
            let verdict = Verdict::Broken(why);
            Report { verdict, ..Report::of(&self.name(), replay, show) }
        })
    }

    /// Reads another file in the folder as text; none if it cannot be read.
    pub fn text(&self, name: &'static str) -> Option<String> {
        optional(&self.path, name).ok().flatten()
    }
}

fn lines(count: usize) -> String {
    if count == 1 { "1 line".to_owned() } else { format!("{count} lines") }
}

/// Returns the lines of the log `text` that are not yet in the timeline, as logs are copied only
/// periodically. Lines are placed by their time stamp, on the clock of the entries that have one;
/// lines without a stamp come last.
fn late(entries: &[Entry], source: &str, text: &str) -> Vec<Entry> {
    let of_source = || entries.iter().filter(|entry| entry.source == source);
    let offset = of_source().find_map(|entry| Some(entry.t - timeline::unix_stamp(&entry.text)?));
    let last = entries.last().map_or(0.0, |entry| entry.t);
    // Not counted from the start: the timeline may have lost its beginning.
    let known = of_source().next_back().map(|entry| entry.text.as_str());
    let new: Vec<&str> = text.lines().rev().take_while(|line| Some(*line) != known).collect();
    let new = new.into_iter().rev();
    new.map(|line| {
        let at = timeline::unix_stamp(line).zip(offset).map(|(stamp, offset)| stamp + offset);
        Entry { t: at.unwrap_or(last), source: source.to_owned(), text: line.to_owned() }
    })
    .collect()
}

/// Reads the case of the evidence folder at `path`, and what it was run on, if known.
pub fn to_replay(path: &Path) -> Result<(Case, Option<Start>), FolderError> {
    let not_evidence = |file| FolderError::NotEvidence { folder: path.to_owned(), file };
    let text = optional(path, CASE)?.ok_or_else(|| not_evidence(CASE))?;
    let case = parse::parse_case(&path.join(CASE).display().to_string(), &text)?;
    let start = optional(path, START)?.and_then(|text| serde_json::from_str(&text).ok());
    Ok((case, start))
}

/// Reads the verdict in the evidence folder at `path`, if any.
pub fn verdict(path: &Path) -> Option<Report> {
    serde_json::from_str(&optional(path, VERDICT).ok()??).ok()
}

/// Reads a file that may be missing. Invalid UTF-8 is replaced: guest output is arbitrary.
fn optional(folder: &Path, name: &'static str) -> Result<Option<String>, FolderError> {
    let path = folder.join(name);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FolderError::Read { path, source }),
    }
}

/// Reads a file, and adds to `problems` if it is missing.
fn expected(
    folder: &Path,
    name: &'static str,
    problems: &mut Vec<String>,
) -> Result<Option<String>, FolderError> {
    let text = optional(folder, name)?;
    if text.is_none() {
        problems.push(format!("{name} is missing"));
    }
    Ok(text)
}

fn json<T: serde::de::DeserializeOwned>(
    text: &str,
    name: &str,
    problems: &mut Vec<String>,
) -> Option<T> {
    serde_json::from_str(text).map_err(|e| problems.push(format!("{name} is damaged: {e}"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_soak_keeps_older_lines_and_adds_new_log_lines() {
        let folder = tempfile::tempdir().unwrap();
        let line = |t: u32, text: &str| {
            format!("{{\"t\": {t}, \"source\": \"vmm\", \"text\": \"{text}\"}}\n")
        };
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write(OLDER, &line(3, "c"));
        write(TIMELINE, &line(4, "d"));
        write("vmm.log", "a\nb\nc\nd\ne\nf\n");
        let read = Folder::read(folder.path()).unwrap();
        let texts: Vec<&str> = read.timeline.iter().map(|entry| entry.text.as_str()).collect();
        assert_eq!(texts, ["c", "d", "e", "f"], "{:?}", read.problems);
    }
}
