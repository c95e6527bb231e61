//! The scenarios on the real QEMU: each passes there, or fails in the way that `differences.toml`
//! reports.
//!
//! But for three themes: what a race comes to is chance there, and the insides of QEMU's devices take
//! minutes, in kernel mode too. `run --vmm qemu` runs them too.
//!
//! A case that fails in an unlisted way is run once more: what QEMU does by chance is worth a report,
//! and no reason to fail a change of ours. Its first failure is printed at the end. Our own VMM has
//! no second try.

mod support;

use std::error::Error;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use cpr_harness::backend::qemu::{self, Qemu, Setup};
use cpr_harness::conform::differences::Differences;
use cpr_harness::run::{Options, Verdict, case};
use cpr_harness::scenario::Case;
use cpr_harness::scenario::set::Set;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

const LEFT_OUT: [&str; 3] = ["race/", "inside/", "kernel/"];

fn main() -> ExitCode {
    support::main(test)
}

fn test(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    // Where ci/install-qemu was run.
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))?;
    let all = arguments.filter.is_none() && arguments.skip.is_empty();
    let all = all && !arguments.list && !arguments.ignored;
    let differences = Arc::new(Mutex::new(Differences::embedded()?));
    let by_chance = Arc::new(Mutex::new(Vec::new()));
    let conclusion =
        libtest_mimic::run(&support::one_more(arguments), trials(&differences, &by_chance)?);
    for failure in by_chance.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!(
            "failed once and passed when run again, so it is chance in QEMU or a false alarm:\n{failure}\n"
        );
    }
    let mut unseen = false;
    if all && !conclusion.has_failed() {
        let differences = differences.lock().unwrap_or_else(PoisonError::into_inner);
        for difference in differences.unseen_verdicts("qemu") {
            unseen = true;
            println!("{} was not seen: remove it from differences.toml", difference.name);
        }
    }
    Ok(if unseen { ExitCode::FAILURE } else { conclusion.exit_code() })
}

fn trials(
    differences: &Arc<Mutex<Differences>>,
    by_chance: &Arc<Mutex<Vec<String>>>,
) -> Result<Vec<Trial>, Box<dyn Error>> {
    let options = match qemu::find() {
        None => None,
        Some(path) => {
            let backend = Arc::new(Qemu::at(&path, Setup::default())?);
            Some(support::options(backend, "evidence/qemu", " --vmm qemu"))
        }
    };
    let wanted = |case: &Case| {
        !case.on_request && !LEFT_OUT.iter().any(|theme| case.name.starts_with(theme))
    };
    let trial = |case: Case| {
        let (options, differences) = (options.clone(), differences.clone());
        let by_chance = by_chance.clone();
        Trial::ignorable_test(format!("qemu/{}", case.name), move || match &options {
            None => support::ignored("needs QEMU: run ci/install-qemu"),
            Some(options) => run(&case, options, &differences).or_else(|first| {
                let second = run(&case, options, &differences)?;
                let failure = format!("{}: {}", case.name, first.message().unwrap_or_default());
                by_chance.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
                Ok(second)
            }),
        })
    };
    Ok(Set::embedded()?.cases.into_iter().filter(wanted).map(trial).collect())
}

fn run(
    case: &Case,
    options: &Options,
    differences: &Mutex<Differences>,
) -> Result<Completion, Failed> {
    let report = case::run(case, options);
    let mut differences = differences.lock().unwrap_or_else(PoisonError::into_inner);
    if differences.of_failure(options.backend.name(), &report).is_some() {
        return Ok(Completion::Completed);
    }
    match &report.verdict {
        // What QEMU lacks is not a missing dependency.
        Verdict::Ignored(why) if why.contains("qemu") => Ok(Completion::ignored_with(why)),
        _ => support::completion(&report),
    }
}
