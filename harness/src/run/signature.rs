//! Decides whether two failures are the same.

use std::sync::LazyLock;

use regex::Regex;

use crate::check::Finding;
use crate::run::verdict::{Report, Verdict};

/// The first finding of a failing step, without what differs from run to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The check.
    pub check: String,
    /// Its message, without numbers and paths.
    message: String,
}

/// Matches a path or a number, with its unit.
static VARIABLE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r#"/[^\s"',:;()\]]+|0x[0-9a-f]+|\d[\d.,]*(ns|us|µs|ms|s)?"#).ok());

impl Signature {
    fn of(finding: &Finding) -> Self {
        // The events seen depend on the steps before.
        let text = finding.message.split("; seen: ").next().unwrap_or_default();
        let message = match &*VARIABLE {
            Some(variable) => variable.replace_all(text, "N").into_owned(),
            None => text.to_owned(),
        };
        Self { check: finding.check.clone(), message }
    }

    /// Returns the signature of `report`; `None` if it has not failed.
    pub fn of_report(report: &Report) -> Option<Self> {
        match &report.verdict {
            Verdict::Fail(findings) => findings.first().map(Self::of),
            Verdict::Pass | Verdict::Ignored(_) | Verdict::Broken(_) => None,
        }
    }

    /// Whether `report` fails in this way, whatever else it shows.
    pub fn is_in(&self, report: &Report) -> bool {
        match &report.verdict {
            Verdict::Fail(findings) => findings.iter().any(|finding| Self::of(finding) == *self),
            Verdict::Pass | Verdict::Ignored(_) | Verdict::Broken(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn report(findings: &[(&str, &str)]) -> Report {
        let findings = findings.iter().map(|(check, text)| Finding::new(check, *text)).collect();
        Report { verdict: Verdict::Fail(findings), ..Report::of("", String::new(), String::new()) }
    }

    #[rstest]
    #[case(&[("fds", "descriptor 14 -> /tmp/cpr-Ab12/x is new")], true)]
    #[case(&[("events", "none"), ("fds", "descriptor 7 -> /tmp/cpr-Cd34/y is new")], true)]
    #[case(&[("kvm", "descriptor 14 -> /tmp/cpr-Ab12/x is new")], false)]
    #[case(&[("fds", "descriptor 1 -> /tmp/x is new; seen: RESET")], true)]
    #[case(&[("fds", "descriptor 14 is gone")], false)]
    #[case(&[], false)]
    fn failures_match_by_check_and_message_without_numbers(
        #[case] findings: &[(&str, &str)],
        #[case] same: bool,
    ) {
        let first = report(&[("fds", "descriptor 9 -> /tmp/cpr-zzzz/x is new"), ("events", "")]);
        let signature = Signature::of_report(&first).unwrap();
        assert!(signature.is_in(&first));
        assert_eq!(signature.is_in(&report(findings)), same);
    }

    #[test]
    fn a_case_that_passes_has_no_signature() {
        let passed = Report::of("", String::new(), String::new());
        assert_eq!(Signature::of_report(&passed), None);
    }
}
