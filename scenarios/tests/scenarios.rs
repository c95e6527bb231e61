//! Turns every scenario case into a test of its own name; if all have passed, they must have shown the
//! table of errors, each difference that is expected, and the whole interface of the VMM. Under
//! nextest no process sees more than one case: there `cpr-harness run --check-errors` compares.

mod support;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use cpr_harness::backend::cpr_vmm::{self, CprVmm};
use cpr_harness::check::expected::Expectations;
use cpr_harness::coverage;
use cpr_harness::report::errors::{Errors, Wish};
use cpr_harness::run::{Options, case, requirements};
use cpr_harness::scenario::Case;
use cpr_harness::scenario::set::Set;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

fn main() -> ExitCode {
    support::main(test)
}

fn test(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let all = arguments.filter.is_none() && arguments.skip.is_empty();
    let all = all && !arguments.list && !arguments.ignored;
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("ERRORS.md");
    let errors = Arc::new(Mutex::new(Errors::new(&table, Wish::Check)?));
    let conclusion = libtest_mimic::run(&support::one_more(arguments), trials(&errors)?);
    if all && !conclusion.has_failed() {
        let (told, same) = errors.lock().unwrap_or_else(PoisonError::into_inner).finish()?;
        told.iter().for_each(|line| println!("{line}"));
        let mut missing = Expectations::embedded().unseen(cpr_vmm::NAME);
        missing.extend(coverage::complaints());
        missing.iter().for_each(|line| println!("{line}"));
        // What a host cannot run shows nothing of it.
        if !same || requirements::all_required() && !missing.is_empty() {
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(conclusion.exit_code())
}

fn trials(errors: &Arc<Mutex<Errors>>) -> Result<Vec<Trial>, Box<dyn Error>> {
    let options = support::options(Arc::new(CprVmm::carried()?), "evidence", "");
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
    support::completion(&report)
}
