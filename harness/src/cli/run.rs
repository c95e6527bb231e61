//! The `run` command.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::again::{Again, durations, remove_rounds};
use super::known::Known;
use super::report::Files;
use super::run_cases::{Around, How, run_cases};
use super::selection::{Selection, select};
use super::setup::{Ready, writable};
use super::vmm::{Vmm, backend, vmm_option};
use super::{CliError, FAILED, cores};
use crate::backend::cpr_vmm;
use crate::check::expected::Expectations;
use crate::coverage;
use crate::lab::restart;
use crate::report::errors::{Errors, Wish};
use crate::report::last_run::LastRun;
use crate::report::stdout::say;
use crate::run::Options;
use crate::run::session::host_restart::Left;
use crate::run::watched::Events;
use crate::scenario::Case;
use crate::scenario::set::Set;

/// How often `--until-fail` runs each case, unless `--repeat` says otherwise.
const MANY: usize = 1000;

#[derive(Args)]
pub(super) struct Run {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    vmm: Vmm,
    #[command(flatten)]
    known: Known,
    /// Cases to run in parallel [default: number of CPUs]; use 1 to measure blackouts.
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Begin no further case after the first that fails.
    #[arg(long)]
    fail_fast: bool,
    /// Run each case N times; from the second time on, its name and evidence end with @2, @3, ….
    #[arg(long, value_name = "N", conflicts_with_all = ["errors", "check_errors"])]
    repeat: Option<NonZeroUsize>,
    /// Run the cases until one fails, up to --repeat times [default: 1000]; repeats that pass leave no
    /// evidence.
    #[arg(long, conflicts_with_all = ["errors", "check_errors"])]
    until_fail: bool,
    /// Only the cases that failed, or could not be run, in the last run with the same --evidence.
    #[arg(long, conflicts_with = "exact")]
    rerun_failed: bool,
    /// Only the cases that the last run with the same --evidence did not begin or finish.
    #[arg(long = "continue", conflicts_with_all = ["exact", "rerun_failed"])]
    go_on: bool,
    /// Print only cases that fail or could not be run, and the summary.
    #[arg(short, long)]
    quiet: bool,
    /// Print each step when it ends.
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    /// Record of an earlier run, to estimate the time left from [default: the file of --json].
    #[arg(long, value_name = "FILE")]
    durations: Option<PathBuf>,
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

impl Run {
    /// The cases of the last run to which this one is limited.
    fn again(&self) -> Option<Again> {
        match (self.rerun_failed, self.go_on) {
            (true, _) => Some(Again::Failed),
            (_, true) => Some(Again::NotRun),
            (false, false) => None,
        }
    }

    fn rounds(&self) -> usize {
        let default = if self.until_fail { MANY } else { 1 };
        self.repeat.map_or(default, NonZeroUsize::get)
    }

    /// How long cases took in an earlier run, if that is known.
    fn durations(&self) -> Result<BTreeMap<String, Duration>, CliError> {
        match (&self.durations, self.files.record()) {
            (Some(path), _) => durations(path),
            // A file of another kind is not an error: it is about to be replaced. Reading from a pipe or
            // a terminal could block.
            (None, Some(path)) if path.is_file() => Ok(durations(path).unwrap_or_default()),
            (None, _) => Ok(BTreeMap::new()),
        }
    }
}

/// Runs `run`.
pub(super) fn main(mut run: Run) -> Result<ExitCode, CliError> {
    let last = match (run.again(), Left::waiting()) {
        (None, _) => None,
        // The rest of a case that this run has begun before the host was restarted.
        (Some(_), Some(case)) => {
            run.selection.only([case].into());
            None
        }
        (Some(again), None) => {
            let (last, cases) = again.read(&run.evidence)?;
            run.selection.only(cases);
            Some(last)
        }
    };
    let set = select(&run.selection)?;
    if set.cases.len() == 1 && run.rounds() == 1 {
        restart::allow();
    }
    let errors = errors_table(&run)?;
    let durations = run.durations()?;
    let differences = run.known.read()?;
    run.files.try_out()?;
    let events = Events::new();
    let ready = Ready::new(&run.evidence, events.ending())?;
    let option = vmm_option(&run.vmm) + &run.known.option();
    let options = ready.options(backend(&run.vmm)?, run.evidence.clone(), option);
    let options = Options { audits: !run.no_audits, keep: run.vmm.keep, ..options };
    remove_rounds(&run.evidence, &set.cases, &set.names)?;
    say(&set);
    if !set.gone.is_empty() {
        let exist = if set.gone.len() == 1 {
            "case of the last run no longer exists"
        } else {
            "cases of the last run no longer exist"
        };
        say(format_args!("{} {exist}: {}", set.gone.len(), set.gone.join(", ")));
    }
    let names = set.cases.iter().map(|case| case.name.clone());
    let last_run = match last {
        None => LastRun::new(names),
        Some(last) => last.without(&set.gone).continued(names),
    };
    let files = Some(&run.files);
    let scenarios = run.selection.files();
    let around = Around { errors, files, scenarios, last_run: Some(last_run), durations };
    let how = How {
        jobs: run.jobs.map_or_else(cores, NonZeroUsize::get),
        rounds: run.rounds(),
        require_all: run.require_all,
        fail_fast: run.fail_fast,
        until_fail: run.until_fail,
        quiet: run.quiet,
        verbose: run.verbose,
        slowest: run.slowest,
    };
    let ran = run_cases(&set.cases, how, &options, &events, around, differences)?;
    let complete = ran.record.not_run.is_empty();
    // Without KVM, not every expected difference can occur.
    if complete && options.audits && options.backend.uses_kvm() && shows_all(&set.cases)? {
        let name = options.backend.name();
        // Coverage is measured against the interface of our own VMM.
        let missing = match name {
            cpr_vmm::NAME => {
                [Expectations::embedded().unseen(name), coverage::complaints()].concat()
            }
            _ => Expectations::embedded().unseen_by_name(name),
        };
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
    if option == "--errors" {
        writable(path)?;
    }
    let errors = Errors::new(path, wish);
    errors.map(Some).map_err(|e| CliError::usage(format!("cannot read {}: {e}", path.display())))
}
