//! `run`, and what `replay` has in common with it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;

use super::selection::{Selection, select};
use super::vmm::{Vmm, backend, vmm_option};
use super::{ENVIRONMENT, FAILED, Stop, cores};
use crate::conform::differences::Differences;
use crate::report::errors::{Errors, Wish};
use crate::report::stdout::say;
use crate::report::terminal::Terminal;
use crate::run::{Options, Patience, orphans, schedule, signals};
use crate::scenario::Case;

#[derive(Args)]
pub(super) struct Run {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    vmm: Vmm,
    /// How many cases at a time [default: as many as there are CPUs]; blackouts are best measured
    /// with 1.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Where evidence goes.
    #[arg(long, default_value = "evidence", value_name = "DIR")]
    evidence: PathBuf,
    /// A case that cannot run here is an error (exit status 3).
    #[arg(long)]
    require_all: bool,
    /// Write the table of all errors that operators read; takes a run of all cases.
    #[arg(long, value_name = "FILE", conflicts_with = "check_errors")]
    errors: Option<PathBuf>,
    /// Fail if the table in this file is not what the run shows; takes a run of all cases.
    #[arg(long, value_name = "FILE")]
    check_errors: Option<PathBuf>,
}

/// Runs it.
pub(super) fn main(run: &Run) -> Result<ExitCode, Stop> {
    let set = select(&run.selection)?;
    let errors = errors_table(run)?;
    say(&set);
    run_cases(
        &set.cases,
        run.jobs.unwrap_or_else(cores),
        &run.vmm,
        run.evidence.clone(),
        run.require_all,
        errors,
    )
}

/// The table of errors that is to be written or compared.
fn errors_table(run: &Run) -> Result<Option<Errors>, Stop> {
    let (path, wish, option) = match (&run.errors, &run.check_errors) {
        (Some(path), _) => (path, Wish::Write, "--errors"),
        (_, Some(path)) => (path, Wish::Check, "--check-errors"),
        _ => return Ok(None),
    };
    if !run.selection.is_whole() {
        let why =
            format!("{option} takes a run of all cases: leave --filter, --shard and SCENARIO out");
        return Err(Stop::usage(why));
    }
    let errors = Errors::new(path, wish);
    errors.map(Some).map_err(|e| Stop::usage(format!("cannot read {}: {e}", path.display())))
}

/// Runs these cases and tells of them.
pub(super) fn run_cases(
    cases: &[Case],
    jobs: usize,
    vmm: &Vmm,
    evidence: PathBuf,
    require_all: bool,
    mut errors: Option<Errors>,
) -> Result<ExitCode, Stop> {
    signals::guard();
    orphans::adopt();
    let options = Options {
        backend: backend(vmm)?,
        evidence,
        keep: vmm.keep,
        patience: Patience::default(),
        vmm_option: vmm_option(vmm),
    };
    let width = cases.iter().map(|case| case.name.len()).max().unwrap_or(0);
    let mut terminal = Terminal::new(cases.len(), width);
    let mut differences = Differences::embedded().map_err(Stop::usage)?;
    let began = Instant::now();
    schedule::run(cases, jobs, &options, |report| {
        let case = cases.iter().find(|case| case.name == report.case);
        if let (Some(errors), Some(case)) = (&mut errors, case) {
            errors.case(case, &report);
        }
        match differences.of_failure(options.backend.name(), &report) {
            Some(names) => terminal.known(&report, names),
            None => terminal.case(report),
        }
    });
    terminal.finish(began.elapsed());
    let (told, same) = match errors.map(|errors| errors.finish()) {
        None => (Vec::new(), true),
        Some(finished) => finished
            .map_err(|e| Stop::environment(format!("cannot write the table of errors: {e}")))?,
    };
    told.iter().for_each(say);
    let broken = terminal.any_broken() || require_all && terminal.any_missed();
    Ok(ExitCode::from(match (terminal.any_failed() || !same, broken) {
        (true, _) => FAILED,
        (false, true) => ENVIRONMENT,
        (false, false) => 0,
    }))
}
