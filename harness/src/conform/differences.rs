//! Known differences between our VMM and others: `scenarios/differences.toml`.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde::Deserialize;

use super::compare::{self, Kind, Mismatch, PASS};
use crate::check;
use crate::run::{Report, Verdict};
use crate::scenario::{ScenarioError, tree};

/// Contents of the file at build time.
const EMBEDDED: &str = include_str!("../../../scenarios/differences.toml");
const NAME: &str = "differences.toml";
/// The VMMs that ours can be compared with.
const VMMS: [&str; 3] = ["qemu", "mock", "cloud-hypervisor"];
/// Texts that no finding consists of: a pattern that matches one of them matches too much.
const ANY_TEXT: [&str; 2] = ["", "zq xj: 0, vw"];

/// A known difference.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// The VMM that differs from ours.
    pub vmm: String,
    /// The kind of the difference.
    pub kind: Kind,
    /// Prefixes of the names of its cases; empty: any case.
    #[serde(default)]
    pub cases: Vec<String>,
    /// Its patterns are specific enough to recognize it in any sequence drawn by `explore`.
    #[serde(default)]
    pub anywhere: bool,
    /// Pattern for the result on our VMM, if that matters.
    #[serde(default)]
    pub ours: Option<Pattern>,
    /// Pattern for the result on the other VMM; a verdict has `findings` instead.
    #[serde(default)]
    pub theirs: Option<Pattern>,
    /// Patterns for the messages of the checks that fail on the other VMM, by check.
    #[serde(default)]
    pub findings: BTreeMap<String, Pattern>,
    /// Why the VMMs differ, and which behaviour is right.
    pub reason: String,
    /// Where upstream tracks it, or should.
    #[serde(default)]
    pub upstream: Option<String>,
    /// It occurs by chance, so a run without it is not an error.
    #[serde(default)]
    pub rare: bool,
}

/// A regular expression.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Pattern(Regex);

impl TryFrom<String> for Pattern {
    type Error = regex::Error;

    fn try_from(text: String) -> Result<Self, regex::Error> {
        Regex::new(&text).map(Self)
    }
}

impl Difference {
    /// True if `case` has one of the prefixes.
    fn is_about(&self, case: &str) -> bool {
        self.cases.iter().any(|prefix| case.starts_with(prefix))
    }

    fn is(&self, vmm: &str, case: &str, differs: &Mismatch) -> bool {
        self.vmm == vmm
            && self.kind == differs.kind
            && (self.cases.is_empty() || self.is_about(case))
            && match &self.ours {
                Some(ours) => ours.0.is_match(&differs.first),
                // A failure of theirs does not excuse one of ours.
                None => self.kind != Kind::Verdict || differs.first == PASS,
            }
            && self.is_said(&differs.second)
    }

    fn is_said(&self, second: &str) -> bool {
        let Some(theirs) = &self.theirs else {
            let finding = second.split_once(": ");
            let known = |(check, message)| Some((self.findings.get(check)?, message));
            return finding.and_then(known).is_some_and(|(known, said)| known.0.is_match(said));
        };
        theirs.0.is_match(second)
    }

    /// Returns why this entry is invalid or too broad to be useful, if it is.
    fn validate(&self) -> Option<String> {
        let known: Vec<&str> = check::names().collect();
        if !VMMS.contains(&self.vmm.as_str()) {
            return Some(format!("unknown `vmm` {:?}: expected {}", self.vmm, VMMS.join(", ")));
        }
        if self.reason.trim().is_empty() {
            return Some("it has no reason".to_owned());
        }
        if (self.kind == Kind::Verdict) == self.findings.is_empty() {
            return Some("`findings` is required for a verdict and invalid elsewhere".to_owned());
        }
        if self.theirs.is_some() == (self.kind == Kind::Verdict) {
            return Some("`theirs` is invalid for a verdict and required elsewhere".to_owned());
        }
        if let Some(check) = self.findings.keys().find(|check| !known.contains(&check.as_str())) {
            return Some(format!("unknown check {check}: expected {}", known.join(", ")));
        }
        let mut patterns = self.findings.values().chain(&self.theirs);
        let wide = patterns.find(|pattern| ANY_TEXT.iter().any(|text| pattern.0.is_match(text)));
        wide.map(|pattern| format!("{:?} matches any text", pattern.0.as_str()))
    }
}

/// All known differences, and those seen so far.
#[derive(Clone, Debug)]
pub struct Differences {
    file: String,
    all: Vec<Difference>,
    seen: BTreeSet<String>,
    /// Cases that were compared: only differences expected in one of them can be missing.
    compared: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    difference: Vec<Difference>,
}

impl Differences {
    /// Returns those of the scenarios in this binary.
    pub fn embedded() -> Result<Self, ScenarioError> {
        Self::parse(NAME, EMBEDDED)
    }

    /// Returns those in `text`, the content of the file `name`.
    pub fn parse(name: &str, text: &str) -> Result<Self, ScenarioError> {
        let file: File = tree::from_str(name, text)?;
        let mut names = BTreeSet::new();
        for difference in &file.difference {
            if !names.insert(&difference.name) {
                let message = format!("duplicate difference `{}`", difference.name);
                return Err(ScenarioError::sense(name, message));
            }
            if let Some(why) = difference.validate() {
                let message = format!("{}: {why}", difference.name);
                return Err(ScenarioError::sense(name, message));
            }
        }
        let (file, all) = (name.to_owned(), file.difference);
        Ok(Self { file, all, seen: BTreeSet::new(), compared: BTreeSet::new() })
    }

    /// Returns the name of the file.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Returns the first known difference that explains `differs`, seen in `case` between our VMM
    /// and `vmm`.
    pub fn find(&mut self, vmm: &str, case: &str, differs: &Mismatch) -> Option<&Difference> {
        let found = self.all.iter().find(|difference| difference.is(vmm, case, differs))?;
        self.seen.insert(found.name.clone());
        Some(found)
    }

    /// Returns the names of the differences that explain a failure of `vmm` in a case that ours
    /// passes, if they cover all its findings.
    pub fn of_failure(&mut self, vmm: &str, report: &Report) -> Option<BTreeSet<String>> {
        if matches!(report.verdict, Verdict::Pass | Verdict::Fail(_)) {
            self.compared(&report.case);
        }
        let Verdict::Fail(_) = report.verdict else { return None };
        let ours = Report { verdict: Verdict::Pass, ..report.clone() };
        let differs = compare::verdicts(&ours, report);
        let names = differs.iter().map(|differs| {
            self.find(vmm, &report.case, differs).map(|difference| difference.name.clone())
        });
        names.collect()
    }

    /// Returns those that apply to any case, such as a drawn one.
    pub fn anywhere(mut self) -> Self {
        self.all.retain(|difference| difference.anywhere || difference.cases.is_empty());
        self.all.iter_mut().for_each(|difference| difference.cases.clear());
        self
    }

    /// Records that a case was compared.
    pub fn compared(&mut self, case: &str) {
        self.compared.insert(case.to_owned());
    }

    /// Returns the differences of `vmm` expected in the compared cases but not seen.
    pub fn unseen(&self, vmm: &str) -> impl Iterator<Item = &Difference> {
        let due = |d: &Difference| {
            let mut compared = self.compared.iter();
            compared.any(|case| d.cases.is_empty() || d.is_about(case))
        };
        let unseen = move |d: &&Difference| !d.rare && !self.seen.contains(&d.name) && due(d);
        self.of(vmm).filter(unseen)
    }

    /// Like [`unseen`](Self::unseen), for verdicts only.
    pub fn unseen_verdicts(&self, vmm: &str) -> impl Iterator<Item = &Difference> {
        self.unseen(vmm).filter(|d| d.kind == Kind::Verdict)
    }

    /// Returns the differences of `vmm`.
    pub fn of(&self, vmm: &str) -> impl Iterator<Item = &Difference> {
        self.all.iter().filter(move |d| d.vmm == vmm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const FILE: &str = r#"
[[difference]]
name = "lost"
vmm = "qemu"
kind = "verdict"
cases = ["refused/no-vmm"]
findings = { pid = " has ended" }
reason = "it execs whatever it is told to"

[[difference]]
name = "fewer-events"
vmm = "qemu"
kind = "events"
ours = "STOP"
theirs = ": $"
reason = "it is a new process"
"#;

    fn differs(kind: Kind, first: &str, second: &str) -> Mismatch {
        Mismatch { kind, first: first.into(), second: second.into() }
    }

    #[rstest]
    #[case("qemu", "refused/no-vmm[a=1]", Kind::Verdict, "pid: process 7 has ended", Some("lost"))]
    #[case("mock", "refused/no-vmm[a=1]", Kind::Verdict, "pid: process 7 has ended", None)]
    #[case("qemu", "update/running", Kind::Verdict, "pid: process 7 has ended", None)]
    #[case("qemu", "refused/no-vmm[a=1]", Kind::Ending, "pid: process 7 has ended", None)]
    #[case("qemu", "refused/no-vmm[a=1]", Kind::Verdict, "ram: changed", None)]
    #[case("qemu", "update/running", Kind::Events, "step 1: ", Some("fewer-events"))]
    fn differences_match_by_vmm_case_kind_and_text(
        #[case] vmm: &str,
        #[case] case: &str,
        #[case] kind: Kind,
        #[case] second: &str,
        #[case] name: Option<&str>,
    ) {
        let mut differences = Differences::parse("f", FILE).unwrap();
        let first = if kind == Kind::Verdict { PASS } else { "STOP" };
        let found = differences.find(vmm, case, &differs(kind, first, second));
        assert_eq!(found.map(|difference| difference.name.as_str()), name);
    }

    #[test]
    fn our_own_failure_is_never_a_known_difference() {
        let mut differences = Differences::parse("f", FILE).unwrap();
        let died = "pid: process 7 has ended";
        let both = differs(Kind::Verdict, "ram: changed", died);
        assert!(differences.find("qemu", "refused/no-vmm[a=1]", &both).is_none());
    }

    #[test]
    fn ours_must_match_if_given() {
        let mut differences = Differences::parse("f", FILE).unwrap();
        assert!(differences.find("qemu", "a/b", &differs(Kind::Events, "RESET", ": ")).is_none());
    }

    #[test]
    fn unseen_differences_of_compared_cases_are_returned() {
        let mut differences = Differences::parse("f", FILE).unwrap();
        differences.find("qemu", "a/b", &differs(Kind::Events, "STOP", "x: ")).unwrap();
        let unseen = |differences: &Differences| -> Vec<String> {
            differences.unseen("qemu").map(|d| d.name.clone()).collect()
        };
        // All of its cases were ignored.
        assert_eq!(unseen(&differences), [""; 0]);
        // One of its cases was compared.
        differences.compared("refused/no-vmm[a=1]");
        assert_eq!(unseen(&differences), ["lost"]);
        assert_eq!(differences.unseen_verdicts("qemu").count(), 1);
        let died = differs(Kind::Verdict, PASS, "pid: process 7 has ended");
        differences.find("qemu", "refused/no-vmm[a=2]", &died).unwrap();
        assert_eq!(unseen(&differences), [""; 0]);
    }

    #[rstest]
    #[case("vmm = \"qemu\"", "vmm = \"cpr-vmm\"", "unknown `vmm` \"cpr-vmm\"")]
    #[case("vmm = \"qemu\"", "vmm = \"qmeu\"", "unknown `vmm` \"qmeu\"")]
    #[case("reason = ", "reason = \" \" # ", "it has no reason")]
    #[case("pid = ", "pidd = ", "unknown check pidd")]
    #[case("\" has ended\"", "\"\"", "\"\" matches any text")]
    #[case("\" has ended\"", "\".*\"", "\".*\" matches any text")]
    #[case("\" has ended\"", "\".+\"", "\".+\" matches any text")]
    #[case("theirs = \": $\"", "theirs = \": \"", "\": \" matches any text")]
    #[case("findings = { pid = \" has ended\" }", "theirs = \"x\"", "`findings` is required")]
    #[case("theirs = \": $\"", "", "`theirs` is invalid for a verdict and required elsewhere")]
    fn rejects_invalid_and_too_broad_entries(
        #[case] right: &str,
        #[case] wrong: &str,
        #[case] why: &str,
    ) {
        assert!(FILE.contains(right));
        let error = Differences::parse("f", &FILE.replacen(right, wrong, 1)).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }

    #[test]
    fn a_finding_of_another_check_does_not_match() {
        let mut differences = Differences::parse("f", FILE).unwrap();
        let said = differs(Kind::Verdict, PASS, "ram: process 7 has ended");
        assert!(differences.find("qemu", "refused/no-vmm[a=1]", &said).is_none());
    }

    #[test]
    fn a_case_that_was_not_run_shows_nothing() {
        let mut differences = Differences::parse("f", FILE).unwrap();
        let report = |verdict| Report {
            verdict,
            ..Report::of("refused/no-vmm[a=1]", String::new(), String::new())
        };
        differences.of_failure("qemu", &report(Verdict::Ignored("not here".to_owned())));
        assert_eq!(differences.unseen_verdicts("qemu").count(), 0);
        differences.of_failure("qemu", &report(Verdict::Pass));
        assert_eq!(differences.unseen_verdicts("qemu").count(), 1);
    }

    #[test]
    fn errors_name_the_line() {
        let twice = FILE.replace("fewer-events", "lost");
        let told = [
            Differences::parse("f", &twice).unwrap_err().to_string(),
            Differences::parse("f", &FILE.replace("theirs = \": $\"", "theirs = \"(\""))
                .unwrap_err()
                .to_string(),
            Differences::parse("f", &FILE.replace("reason", "raison")).unwrap_err().to_string(),
        ];
        insta::assert_snapshot!(told.join("\n\n"));
    }

    #[test]
    fn the_embedded_file_is_valid() {
        Differences::embedded().unwrap();
    }
}
