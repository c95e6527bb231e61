//! Trying out one class: its case with and without the planted bug.

use std::slice;
use std::sync::Arc;

use super::need::Need;
use super::{BugClass, InProcess};
use crate::backend::cpr_vmm::CprVmm;
use crate::run::{Options, Report, Verdict, case};
use crate::scenario::Case;

/// What a report calls the first step.
const BOOT: &str = "step 1 (boot)";

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing failed.
    Passed,
    /// These checks failed; the first says why.
    Failed {
        /// Their names.
        checks: Vec<String>,
        /// What the first said.
        message: String,
    },
    /// It did not run: why.
    NotRun(String),
}

impl From<&Report> for Outcome {
    fn from(report: &Report) -> Self {
        match &report.verdict {
            Verdict::Pass => Self::Passed,
            // A bug that keeps the guest from booting, or that the VMM does not know, proves nothing.
            Verdict::Fail(findings) if report.failed_step.as_deref() == Some(BOOT) => {
                let why = findings.first().map_or("", |finding| finding.message.as_str());
                Self::NotRun(format!("at {BOOT}: {why}"))
            }
            Verdict::Fail(findings) => Self::Failed {
                checks: findings.iter().map(|finding| finding.check.clone()).collect(),
                message: findings.first().map(|f| f.message.clone()).unwrap_or_default(),
            },
            Verdict::Ignored(why) | Verdict::Broken(why) => Self::NotRun(why.clone()),
        }
    }
}

impl Outcome {
    /// The bug was noticed, by one of the checks that are expected to.
    pub fn is_caught_by(&self, expected: &[String]) -> bool {
        matches!(self, Self::Failed { checks, .. } if checks.iter().any(|c| expected.contains(c)))
    }
}

/// What came of a case, and the lines to type if that is wrong.
#[derive(Clone, Debug)]
pub struct Tried {
    /// What came of it.
    pub outcome: Outcome,
    /// How to run it again, and how to read what happened; empty if it did not run.
    pub to_type: Vec<String>,
}

impl From<Report> for Tried {
    fn from(report: Report) -> Self {
        let outcome = Outcome::from(&report);
        let ran = !matches!(report.verdict, Verdict::Ignored(_));
        Self { outcome, to_type: if ran { report.to_type() } else { Vec::new() } }
    }
}

/// Runs `case` as it is.
pub fn clean(case: &Case, options: &Options) -> Tried {
    case::run(case, options).into()
}

/// Why this host cannot show the bug of `class`, if it cannot.
pub fn unmet(class: &BugClass) -> Option<Outcome> {
    class.needs.and_then(Need::unmet).map(Outcome::NotRun)
}

/// Runs `case` with the bug of `class` in `vmm`.
pub fn planted(class: &BugClass, case: &Case, vmm: &CprVmm, options: &Options) -> Tried {
    if let Some(outcome) = unmet(class) {
        return Tried { outcome, to_type: Vec::new() };
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
    tried
}
