//! Runs the case of a class with and without the planted bug.

use std::slice;
use std::sync::Arc;

use super::need::Need;
use super::{BugClass, InProcess};
use crate::backend::cpr_vmm::CprVmm;
use crate::check::Finding;
use crate::run::{Options, Report, Verdict, case};
use crate::scenario::Case;

/// Label of the first step in reports.
const BOOT: &str = "step 1 (boot)";

/// Outcome of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No check failed.
    Passed,
    /// These checks failed.
    Failed {
        /// Their names.
        checks: Vec<String>,
        /// Message of the first one.
        message: String,
    },
    /// It did not run, for this reason.
    NotRun(String),
}

impl From<&Report> for Outcome {
    fn from(report: &Report) -> Self {
        match &report.verdict {
            Verdict::Pass => Self::Passed,
            // A bug that prevents booting, or that the VMM does not know, is not evidence.
            Verdict::Fail(findings) if report.failed_step.as_deref() == Some(BOOT) => {
                let why = findings.first().map_or("", |finding| finding.message.as_str());
                Self::NotRun(format!("at {BOOT}: {why}"))
            }
            Verdict::Fail(findings) => Self::Failed {
                checks: findings.iter().map(|finding| finding.check.clone()).collect(),
                message: findings.first().map(Finding::first_line).unwrap_or_default(),
            },
            Verdict::Ignored(why) | Verdict::Broken(why) => Self::NotRun(why.clone()),
        }
    }
}

impl Outcome {
    /// True if one of the expected checks caught the bug.
    pub fn is_caught_by(&self, expected: &[String]) -> bool {
        matches!(self, Self::Failed { checks, .. } if checks.iter().any(|c| expected.contains(c)))
    }
}

/// Outcome of a case, with the commands to investigate it.
#[derive(Clone, Debug)]
pub struct Tried {
    /// The outcome.
    pub outcome: Outcome,
    /// Commands to run it again and to show its evidence; empty if it did not run.
    pub repro_commands: Vec<String>,
}

impl From<Report> for Tried {
    fn from(report: Report) -> Self {
        let outcome = Outcome::from(&report);
        let ran = !matches!(report.verdict, Verdict::Ignored(_));
        Self { outcome, repro_commands: if ran { report.repro_commands() } else { Vec::new() } }
    }
}

/// Runs `case` without a planted bug.
pub fn clean(case: &Case, options: &Options) -> Tried {
    case::run(case, options).into()
}

/// Returns why the bug of `class` has no effect on this host, if so.
pub fn unmet(class: &BugClass) -> Option<Outcome> {
    class.needs.and_then(Need::unmet).map(Outcome::NotRun)
}

/// Runs `case` with the bug of `class` in `vmm`.
pub fn planted(class: &BugClass, case: &Case, vmm: &CprVmm, options: &Options) -> Tried {
    if let Some(outcome) = unmet(class) {
        return Tried { outcome, repro_commands: Vec::new() };
    }
    let argument = format!("--plant={}", class.planted);
    let (vmm, option) = match class.in_process {
        InProcess::Both => (vmm.clone().with(slice::from_ref(&argument)), "--vmm-arg"),
        InProcess::New => (vmm.clone().with_new(slice::from_ref(&argument)), "--new-vmm-arg"),
    };
    let options = Options {
        backend: Arc::new(vmm),
        evidence: options.evidence.join("planted").join(&class.planted),
        vmm_option: format!(" {option}={argument}"),
        ..options.clone()
    };
    let mut tried = Tried::from(case::run(case, &options));
    for _ in 1..class.runs {
        if tried.outcome != Outcome::Passed {
            break;
        }
        tried = case::run(case, &options).into();
    }
    let failed = matches!(tried.outcome, Outcome::Failed { .. });
    if failed && !tried.outcome.is_caught_by(&class.checks) && options.audits {
        // An audit ended the case before the expected check could notice.
        let options = Options { audits: false, ..options };
        tried = case::run(case, &options).into();
    }
    tried
}
