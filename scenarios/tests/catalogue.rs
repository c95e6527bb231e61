//! Every planted bug is caught by the scenario that the catalogue names, and by the check it names.

mod support;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

use cpr_harness::backend::cpr_vmm::CprVmm;
use cpr_harness::catalogue::lab::Record;
use cpr_harness::catalogue::trial::{self, Outcome, Tried};
use cpr_harness::catalogue::{self, BugClass, table};
use cpr_harness::run::Options;
use cpr_harness::scenario::Case;
use cpr_harness::scenario::set::Set;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

const FILE: &str = include_str!("../BUG-CLASSES.md");

fn main() -> ExitCode {
    support::main(test)
}

fn test(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    Ok(libtest_mimic::run(arguments, trials()?).exit_code())
}

fn trials() -> Result<Vec<Trial>, Box<dyn Error>> {
    let vmm = CprVmm::carried()?;
    let options = support::options(Arc::new(vmm.clone()), "evidence/catalogue", "");
    let cases = Set::embedded()?.cases;
    let classes = catalogue::all()?;
    let file = table::markdown(&classes, &Record::embedded()?);
    let mut trials = vec![Trial::test("the_file_is_current", move || match file == FILE {
        true => Ok(()),
        false => {
            Err("run `cargo run --release -- catalogue --write scenarios/BUG-CLASSES.md`".into())
        }
    })];
    for class in classes.into_iter().filter(|class| class.unproved.is_none()) {
        let case = class.find(&cases)?.clone();
        let (options, vmm) = (options.clone(), vmm.clone());
        let name = format!("planted/{} in {}", class.planted, class.case);
        trials.push(Trial::ignorable_test(name, move || caught(&class, &case, &vmm, &options)));
    }
    Ok(trials)
}

/// Without its bug the case is run as a test of its own.
fn caught(
    class: &BugClass,
    case: &Case,
    vmm: &CprVmm,
    options: &Options,
) -> Result<Completion, Failed> {
    let Tried { outcome, repro_commands } = trial::planted(class, case, vmm, options);
    match outcome {
        outcome if outcome.is_caught_by(&class.checks) => Ok(Completion::Completed),
        Outcome::NotRun(why) => support::ignored(&why),
        outcome => {
            let why = format!("{}: {outcome:?}, not caught by {:?}", case.name, class.checks);
            Err([vec![why], repro_commands].concat().join("\n").into())
        }
    }
}
