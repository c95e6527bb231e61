//! Turns each scenario case into a test; a case that needs a feature the VMM lacks is ignored.

mod backend;

use std::process::ExitCode;
use std::sync::Arc;

use cpr_harness::observe::clock;
use cpr_harness::observe::patience::Patience;
use cpr_harness::run::{self, Options, Verdict, case};
use cpr_harness::scenario::set::Set;
use cpr_harness::{multicall, report};
use libtest_mimic::{Arguments, Completion, Trial};

fn main() -> ExitCode {
    // Only for this example, whose VMM is in this binary.
    if let Some(code) = multicall::dispatch() {
        return code;
    }
    let arguments = Arguments::from_args();
    clock::start();
    run::guard();
    let options = Options {
        backend: Arc::new(backend::OwnVmm::new().expect("find the VMM")),
        evidence: env!("CARGO_TARGET_TMPDIR").into(),
        keep: false,
        audits: true,
        patience: Patience::default(),
        vmm_option: String::new(),
    };
    let cases = Set::embedded().expect("parse the scenarios").cases;
    let trials = cases.into_iter().filter(|case| !case.on_request).map(|case| {
        let options = options.clone();
        Trial::ignorable_test(case.name.clone(), move || {
            let report = case::run(&case, &options);
            match &report.verdict {
                Verdict::Pass => Ok(Completion::Completed),
                Verdict::Ignored(why) => Ok(Completion::ignored_with(why)),
                Verdict::Fail(_) => Err(report::case_text::details(&report).join("\n").into()),
                Verdict::Broken(why) => Err(why.into()),
            }
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
