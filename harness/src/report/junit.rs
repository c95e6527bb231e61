//! Renders a run as JUnit XML for GitLab, Jenkins and GitHub, with one suite per theme.

use std::collections::BTreeSet;
use std::time::Duration;

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

use super::case_text::details;
use super::record::{Entry, Record};
use super::tested::Run;
use crate::check::Finding;
use crate::run::Verdict;

/// Returns the XML.
pub fn xml(record: &Record) -> Result<String, quick_junit::SerializeError> {
    let mut report = quick_junit::Report::new("cpr-harness");
    report.set_time(record.took());
    let mut suites: Vec<TestSuite> = Vec::new();
    for entry in &record.cases {
        let suite = match suites.iter_mut().find(|suite| *suite.name == *entry.theme) {
            Some(suite) => suite,
            None => suites.push_mut(TestSuite::new(entry.theme.as_str())),
        };
        let time = suite.time.unwrap_or(Duration::ZERO) + entry.report.took;
        suite.set_time(time);
        suite.add_test_case(case(entry, record));
    }
    for name in &record.not_run {
        let (theme, case) = name.split_once('/').unwrap_or(("", name));
        let mut case = TestCase::new(case, skipped("not run: the run ended before"));
        case.set_classname(theme);
        match suites.iter_mut().find(|suite| *suite.name == *theme) {
            Some(suite) => suite.add_test_case(case),
            None => suites.push_mut(TestSuite::new(theme)).add_test_case(case),
        };
    }
    for suite in &mut suites {
        let of = |entry: &&Entry| *suite.name == *entry.theme;
        let runs = record.cases.iter().filter(of).filter_map(|entry| record.runs.get(entry.run));
        let properties: BTreeSet<(&str, String)> = runs.flat_map(Run::facts).collect();
        properties.into_iter().for_each(|(name, fact)| {
            suite.add_property((name, fact.as_str()));
        });
    }
    report.add_test_suites(suites);
    report.to_string()
}

fn case(entry: &Entry, record: &Record) -> TestCase {
    let report = &entry.report;
    let known: Vec<&str> = entry.known.iter().map(String::as_str).collect();
    let status = match &report.verdict {
        _ if !known.is_empty() => skipped(&format!("known difference: {}", known.join(", "))),
        Verdict::Pass => TestCaseStatus::success(),
        Verdict::Ignored(why) => skipped(why),
        Verdict::Fail(findings) => {
            let first = findings.first().map(Finding::summary).unwrap_or_default();
            let kind = findings.first().map(|finding| finding.check.clone());
            not_good(NonSuccessKind::Failure, &first, kind, &details(report))
        }
        Verdict::Broken(why) => {
            let kind = Some("broken".to_owned());
            not_good(NonSuccessKind::Error, why, kind, std::slice::from_ref(why))
        }
    };
    let name = report.case.split_once('/').map_or(report.case.as_str(), |(_, name)| name);
    let mut case = TestCase::new(name, status);
    case.set_classname(entry.theme.as_str());
    case.set_time(report.took);
    case.add_property(("summary", entry.summary.as_str()));
    if record.runs.len() > 1
        && let Some(run) = record.runs.get(entry.run)
    {
        case.add_property(("vmm", run.vmm.title.as_str()));
    }
    case
}

fn skipped(why: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_message(why);
    status
}

fn not_good(
    kind: NonSuccessKind,
    message: &str,
    check: Option<String>,
    details: &[String],
) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    status.set_message(message);
    if let Some(check) = check {
        status.set_type(check);
    }
    let lines: Vec<&str> = details.iter().map(|line| line.trim_start()).collect();
    status.set_description(lines.join("\n"));
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tested::Vmm;
    use crate::run::Report;

    /// Consistent with `run`, whose exit status is 0 then.
    #[test]
    fn known_differences_are_skipped() {
        let verdict = Verdict::Fail(vec![Finding::new("run_state", "is postmigrate")]);
        let entry = Entry {
            summary: String::new(),
            theme: "a".into(),
            evidence: None,
            run: 0,
            known: ["postmigrate".to_owned()].into(),
            report: Report { verdict, ..Report::of("a/b", String::new(), String::new()) },
        };
        let vmm = Vmm { title: "qemu 10.2".into(), ..Vmm::default() };
        let run = Run { vmm, ..Run::default() };
        let xml = xml(&Record { cases: vec![entry], ..Record::of(vec![run]) }).unwrap();
        assert!(xml.contains(r#"tests="1" skipped="1" failures="0" errors="0""#), "{xml}");
        assert!(xml.contains(r#"<skipped message="known difference: postmigrate"/>"#), "{xml}");
    }
}
