//! The `run` command, and what it shares with `replay`.

use std::cmp::Reverse;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;

use super::report::Files;
use super::selection::{Selection, select};
use super::vmm::{Vmm, backend, vmm_option};
use super::{CliError, FAILED, cores, exit_status};
use crate::backend::cpr_vmm;
use crate::check::expected::Expectations;
use crate::conform::differences::Differences;
use crate::coverage;
use crate::observe::patience::Patience;
use crate::report::errors::{Errors, Wish};
use crate::report::record::Record;
use crate::report::stdout::say;
use crate::report::terminal::Terminal;
use crate::report::tested;
use crate::run::{self, Options, Verdict, schedule};
use crate::scenario::Case;
use crate::scenario::set::Set;

#[derive(Args)]
pub(super) struct Run {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    vmm: Vmm,
    /// Cases to run in parallel [default: number of CPUs]; use 1 to measure blackouts.
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Begin no further case after the first that fails.
    #[arg(long)]
    fail_fast: bool,
    /// Print only cases that fail or could not be run, and the summary.
    #[arg(short, long)]
    quiet: bool,
    /// List the N cases that took longest.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    slowest: usize,
    /// Folder for evidence.
    #[arg(long, default_value = "evidence", value_name = "DIR")]
    evidence: PathBuf,
    /// Exit with status 3 if a case cannot run here.
    #[arg(long)]
    require_all: bool,
    /// Skip the audits, which compare all that can be read before and after an update; that of the
    /// KVM state adds a few milliseconds to each blackout.
    #[arg(long)]
    no_audits: bool,
    #[command(flatten)]
    files: Files,
    /// Write the table of all errors that operators see; requires a run of all cases.
    #[arg(long, value_name = "FILE", conflicts_with = "check_errors")]
    errors: Option<PathBuf>,
    /// Fail if the table in this file differs from this run; requires a run of all cases.
    #[arg(long, value_name = "FILE")]
    check_errors: Option<PathBuf>,
}

/// Runs `run`.
pub(super) fn main(run: &Run) -> Result<ExitCode, CliError> {
    let set = select(&run.selection)?;
    let errors = errors_table(run)?;
    run.files.try_out()?;
    run::guard();
    let options = options(&run.vmm, run.evidence.clone())?;
    let options = Options { audits: !run.no_audits, ..options };
    say(&set);
    let jobs = run.jobs.map_or_else(cores, NonZeroUsize::get);
    let Run { require_all, fail_fast, quiet, slowest, .. } = *run;
    let how = How { jobs, require_all, fail_fast, quiet, slowest };
    let ran = run_cases(&set.cases, how, &options, errors)?;
    run.files.write(&ran.record)?;
    // Without KVM, not every expected difference can occur.
    if ran.complete && options.audits && options.backend.uses_kvm() && shows_all(&set.cases)? {
        let name = options.backend.name();
        let mut missing = Expectations::embedded().unseen(name);
        // Coverage is measured against the interface of our own VMM.
        if name == cpr_vmm::NAME {
            missing.extend(coverage::complaints());
        }
        missing.iter().for_each(say);
        if !missing.is_empty() && ran.code == ExitCode::SUCCESS {
            return Ok(ExitCode::from(FAILED));
        }
    }
    Ok(ran.code)
}

/// True if `cases` include all embedded ones: only then must every expected difference occur.
fn shows_all(cases: &[Case]) -> Result<bool, CliError> {
    let ours = Set::embedded().map_err(CliError::usage)?.cases;
    let runs = |name: &str| cases.iter().any(|case| case.name == name);
    Ok(ours.iter().filter(|case| !case.on_request).all(|case| runs(&case.name)))
}

/// The table of errors to write or compare, if requested.
fn errors_table(run: &Run) -> Result<Option<Errors>, CliError> {
    let (path, wish, option) = match (&run.errors, &run.check_errors) {
        (Some(path), _) => (path, Wish::Write, "--errors"),
        (_, Some(path)) => (path, Wish::Check, "--check-errors"),
        _ => return Ok(None),
    };
    if !run.selection.is_whole() {
        let why =
            format!("{option} requires a run of all cases: omit all options that select cases");
        return Err(CliError::usage(why));
    }
    let errors = Errors::new(path, wish);
    errors.map(Some).map_err(|e| CliError::usage(format!("cannot read {}: {e}", path.display())))
}

/// Options to run cases with.
pub(super) fn options(vmm: &Vmm, evidence: PathBuf) -> Result<Options, CliError> {
    Ok(Options {
        backend: backend(vmm)?,
        evidence,
        keep: vmm.keep,
        audits: true,
        patience: Patience::default(),
        vmm_option: vmm_option(vmm),
    })
}

/// Result of a run.
pub(super) struct Ran {
    /// The record of the run.
    pub(super) record: Record,
    /// Exit status of the harness.
    pub(super) code: ExitCode,
    /// Whether every case was run.
    complete: bool,
}

/// How cases are run, and what is printed of them.
#[derive(Clone, Copy, Default)]
pub(super) struct How {
    /// Cases at a time.
    pub(super) jobs: usize,
    /// A case that cannot run here is an error.
    pub(super) require_all: bool,
    /// Whether no case begins after one that failed.
    pub(super) fail_fast: bool,
    /// Whether only failures are printed.
    pub(super) quiet: bool,
    /// How many of the longest cases are listed.
    pub(super) slowest: usize,
}

/// Runs these cases and prints their reports.
pub(super) fn run_cases(
    cases: &[Case],
    how: How,
    options: &Options,
    mut errors: Option<Errors>,
) -> Result<Ran, CliError> {
    let width = cases.iter().map(|case| case.name.len()).max().unwrap_or(0);
    let mut terminal = Terminal::new(cases.len(), width);
    let mut differences = Differences::embedded().map_err(CliError::usage)?;
    let mut record = Record::new(tested::Run::now(options, how.jobs));
    let began = Instant::now();
    let mut took = Vec::new();
    schedule::run(cases, how.jobs, options, |report| {
        let known = differences.of_failure(options.backend.name(), &report);
        if let Some(case) = cases.iter().find(|case| case.name == report.case) {
            if let Some(errors) = &mut errors {
                errors.case(case, &report);
            }
            record.add(case, &report, &known, &options.evidence);
        }
        took.push((report.took, report.case.clone()));
        let failed = known.is_none() && matches!(report.verdict, Verdict::Fail(_));
        let missed = how.require_all && report.verdict.miss().is_some();
        let broken = matches!(report.verdict, Verdict::Broken(_));
        let shown = !how.quiet || failed || missed || broken || report.kept.is_some();
        match known {
            Some(names) if shown => terminal.known(&report, names),
            Some(names) => terminal.count_known(&report, names),
            None if shown => terminal.case(report),
            None => terminal.count(report),
        }
        match failed && how.fail_fast {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    record.runs.iter_mut().for_each(|run| run.end(began.elapsed()));
    terminal.finish(began.elapsed());
    took.sort_by_key(|(took, _)| Reverse(*took));
    for (took, case) in took.iter().take(how.slowest) {
        say(format_args!("{:>8.2} s  {case}", took.as_secs_f64()));
    }
    let (told, same) = match errors.map(|errors| errors.finish()) {
        None => (Vec::new(), true),
        Some(finished) => finished
            .map_err(|e| CliError::environment(format!("cannot write the table of errors: {e}")))?,
    };
    told.iter().for_each(say);
    let complete = took.len() == cases.len();
    if !complete {
        say(format_args!("{} cases were not begun (--fail-fast)", cases.len() - took.len()));
    }
    Ok(Ran { record, code: exit_status::of(&terminal, same, how.require_all), complete })
}
