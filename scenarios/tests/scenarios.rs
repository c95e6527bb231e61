//! Turns every scenario case into a test of its own name; if all have passed, the table of errors
//! must be what they have shown.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use cpr_harness::backend::cpr_vmm::CprVmm;
use cpr_harness::carry;
use cpr_harness::observe::clock;
use cpr_harness::report::errors::{Errors, Wish};
use cpr_harness::report::terminal;
use cpr_harness::run::{Options, Patience, Verdict, case, orphans, signals};
use cpr_harness::scenario::Case;
use cpr_harness::scenario::set::Set;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

fn main() -> ExitCode {
    if let Some(code) = carry::dispatch() {
        return code;
    }
    let arguments = Arguments::from_args();
    clock::start();
    signals::guard();
    orphans::adopt();
    let all = arguments.filter.is_none() && arguments.skip.is_empty() && !arguments.list;
    match test(&arguments, all) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("scenarios: {e}");
            ExitCode::FAILURE
        }
    }
}

fn test(arguments: &Arguments, all: bool) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("ERRORS.md");
    let errors = Arc::new(Mutex::new(Errors::new(&table, Wish::Check)?));
    let conclusion = libtest_mimic::run(arguments, trials(&errors)?);
    if all && !conclusion.has_failed() && !arguments.ignored {
        let (told, same) = errors.lock().unwrap_or_else(PoisonError::into_inner).finish()?;
        told.iter().for_each(|line| println!("{line}"));
        if !same {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(conclusion.exit_code())
}

fn trials(errors: &Arc<Mutex<Errors>>) -> Result<Vec<Trial>, Box<dyn std::error::Error>> {
    let options = Options {
        backend: Arc::new(CprVmm::carried()?),
        evidence: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("evidence"),
        keep: false,
        patience: Patience::default(),
        vmm_option: String::new(),
    };
    let trial = |case: Case| {
        let (options, errors) = (options.clone(), errors.clone());
        let on_request = case.on_request;
        Trial::ignorable_test(case.name.clone(), move || run(&case, &options, &errors))
            .with_ignored_flag(on_request)
    };
    Ok(Set::embedded()?.cases.into_iter().map(trial).collect())
}

fn run(case: &Case, options: &Options, errors: &Mutex<Errors>) -> Result<Completion, Failed> {
    let report = case::run(case, options);
    if !case.on_request {
        errors.lock().unwrap_or_else(PoisonError::into_inner).case(case, &report);
    }
    // Where everything must run, as in CI, a miss is an error.
    if let Some(why) = report.verdict.miss()
        && std::env::var_os("CPR_REQUIRE_ALL").is_some()
    {
        return Err(why.into());
    }
    match &report.verdict {
        Verdict::Pass => Ok(Completion::Completed),
        Verdict::Fail(_) => Err(terminal::details(&report).join("\n").into()),
        Verdict::Ignored(why) => Ok(Completion::ignored_with(why)),
        Verdict::Broken(why) => Err(why.into()),
    }
}
