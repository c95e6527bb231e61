//! The `report` command, and the report files that `run` also writes.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::known::Known;
use super::setup::try_out;
use super::{CliError, exit_status};
use crate::report::merge::{Merged, merge};
use crate::report::record::{self, Record};
use crate::report::stdout::say;
use crate::report::terminal::Terminal;
use crate::report::{github, html, junit};
use crate::run::Verdict;

#[derive(Args)]
pub(super) struct Report {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Merge several runs, such as shards, into one report.
    Merge(Merge),
}

#[derive(Args)]
struct Merge {
    /// Files written by `run --json`, or evidence folders.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    known: Known,
    /// Exit with status 3 if a case was ignored that another host could run.
    #[arg(long)]
    require_all: bool,
}

/// Paths of the report files.
#[derive(Args)]
pub(super) struct Files {
    /// Write a record of the run, for `report merge` and other programs.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write JUnit XML, for GitLab, Jenkins and GitHub.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write an HTML report.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl Files {
    /// The path of the record.
    pub(super) fn record(&self) -> Option<&Path> {
        self.json.as_deref()
    }

    /// Requests only the JSON report, if any.
    pub(super) fn only_json(json: Option<PathBuf>) -> Self {
        Self { json, junit: None, html: None }
    }

    /// Checks that the files can be written, before a long run, and removes them: if this run is
    /// interrupted, a report of an earlier run must not be mistaken for its own.
    pub(super) fn try_out(&self) -> Result<(), CliError> {
        let paths = [&self.json, &self.junit, &self.html].into_iter().flatten();
        paths.into_iter().try_for_each(|path| try_out(path))
    }

    /// Writes the requested reports; returns why some could not be written.
    pub(super) fn write(&self, record: &Record) -> Vec<String> {
        let cannot =
            |path: &Path, why: &dyn Display| format!("cannot write {}: {why}", path.display());
        let json = self.json.as_deref().map(|path| record.write(path).map_err(|e| e.to_string()));
        let junit = self.junit.as_deref().map(|path| {
            let xml = junit::xml(record).map_err(|e| cannot(path, &e))?;
            record::write(path, &xml).map_err(|e| e.to_string())
        });
        let html = self
            .html
            .as_deref()
            .map(|path| record::write(path, &html::page(record, path)).map_err(|e| e.to_string()));
        [json, junit, html].into_iter().flatten().filter_map(Result::err).collect()
    }
}

/// Writes the summary for GitHub, if this runs there; returns why it could not be written.
pub(super) fn summarize_for_github(record: &Record) -> Option<String> {
    let cannot = |e| format!("cannot write the summary for GitHub: {e}");
    github::summarize(record).err().map(cannot)
}

/// Runs `report`.
pub(super) fn main(report: &Report) -> Result<ExitCode, CliError> {
    let What::Merge(Merge { runs, files, known, require_all }) = &report.what;
    let mut known = known.chosen()?;
    let Merged { record, remarks } = merge(runs, known.as_mut()).map_err(CliError::usage)?;
    let mut wrong = files.write(&record);
    let mut terminal = Terminal::new(0, 0);
    terminal.not_run(record.not_run.len());
    for entry in &record.cases {
        // The summary names failed cases only.
        if let Verdict::Broken(why) = &entry.report.verdict {
            say(format_args!("could not be run: {}: {why}", entry.report.case));
        }
        match entry.known.is_empty() {
            true => terminal.count(entry.report.clone()),
            false => terminal.count_known(&entry.report, entry.known.clone()),
        }
    }
    remarks.iter().for_each(say);
    terminal.finish(record.took());
    wrong.extend(summarize_for_github(&record));
    Ok(exit_status::despite(&wrong, exit_status::of(&terminal, true, *require_all)))
}
