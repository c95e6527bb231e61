//! What the test targets have in common.
#![allow(dead_code, reason = "each target takes what it needs")]

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use cpr_harness::backend::Backend;
use cpr_harness::multicall;
use cpr_harness::observe::clock;
use cpr_harness::observe::patience::Patience;
use cpr_harness::report::case_text;
use cpr_harness::run::verdict::HOST_LACKS;
use cpr_harness::run::{self, Options, Report, Verdict, requirements};
use libtest_mimic::{Arguments, Completion, Failed};

/// The `main` of a target: this binary is also its VMM.
pub fn main(test: fn(&Arguments) -> Result<ExitCode, Box<dyn Error>>) -> ExitCode {
    if let Some(code) = multicall::dispatch() {
        return code;
    }
    let arguments = Arguments::from_args();
    clock::start();
    run::guard();
    test(&arguments).unwrap_or_else(|e| {
        eprintln!("{}: {e}", env!("CARGO_CRATE_NAME"));
        ExitCode::FAILURE
    })
}

/// One case more at a time than there are CPUs, unless the command line says otherwise: a case waits now
/// and then. Not for planted bugs that only show at certain instants, which are rarer on a busy host.
pub fn one_more(arguments: &Arguments) -> Arguments {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let test_threads = arguments.test_threads.or(Some(cpus + 1));
    Arguments { test_threads, ..arguments.clone() }
}

/// A run with evidence in a folder of the target's own.
pub fn options(backend: Arc<dyn Backend>, folder: &str, vmm_option: &str) -> Options {
    Options {
        backend,
        evidence: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(folder),
        keep: false,
        audits: true,
        patience: Patience::default(),
        vmm_option: vmm_option.to_owned(),
    }
}

/// A report as the end of a test.
pub fn completion(report: &Report) -> Result<Completion, Failed> {
    match &report.verdict {
        Verdict::Pass => Ok(Completion::Completed),
        Verdict::Fail(_) => Err(case_text::details(report).join("\n").into()),
        Verdict::Ignored(why) => ignored(why),
        Verdict::Broken(why) => Err(why.into()),
    }
}

/// Where everything must run, as in CI, a miss is an error, unless it cannot be installed.
pub fn ignored(why: &str) -> Result<Completion, Failed> {
    match why.starts_with(HOST_LACKS) || !requirements::all_required() {
        true => Ok(Completion::ignored_with(why)),
        false => Err(why.into()),
    }
}
