//! The differences between our VMM and another that are meant: `scenarios/differences.toml`.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde::Deserialize;

use super::compare::{self, Differs, Kind, PASS};
use crate::check;
use crate::run::{Report, Verdict};
use crate::scenario::ScenarioError;

/// The file, as it was when this binary was built.
const EMBEDDED: &str = include_str!("../../../scenarios/differences.toml");
const NAME: &str = "differences.toml";
/// The VMMs that ours is compared with.
const VMMS: [&str; 2] = ["qemu", "mock"];
/// What tells findings and is no check of a VMM that lives.
const OTHERS: [&str; 5] = ["pid", "gone", "killed", "step", "watchdog"];

/// One difference that is meant.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// The VMM that is different.
    pub vmm: String,
    /// What differs.
    pub kind: Kind,
    /// The names of its cases begin with one of these; empty: any case.
    #[serde(default)]
    pub cases: Vec<String>,
    /// Its text is so plain that a sequence drawn by `explore` that shows it shows this.
    #[serde(default)]
    pub anywhere: bool,
    /// What our VMM says, where that matters.
    #[serde(default)]
    pub ours: Option<Pattern>,
    /// What the other one says; of a verdict the findings tell.
    #[serde(default)]
    pub theirs: Option<Pattern>,
    /// What each check has to say that fails there.
    #[serde(default)]
    pub findings: BTreeMap<String, Pattern>,
    /// Why it is so, and why that is right or wrong.
    pub reason: String,
    /// Where upstream has, or should have, it.
    #[serde(default)]
    pub upstream: Option<String>,
    /// It takes chance to see it.
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
    /// It names this case.
    fn is_about(&self, case: &str) -> bool {
        self.cases.iter().any(|prefix| case.starts_with(prefix))
    }

    fn is(&self, vmm: &str, case: &str, differs: &Differs) -> bool {
        self.vmm == vmm
            && self.kind == differs.kind
            && (self.cases.is_empty() || self.is_about(case))
            && match &self.ours {
                Some(ours) => ours.0.is_match(&differs.first),
                // That theirs fails is no excuse for ours.
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

    /// What makes it so wide, or so wrong, that it proves nothing.
    fn nonsense(&self) -> Option<String> {
        let known: Vec<&str> = check::ALL.iter().map(|check| check.name).chain(OTHERS).collect();
        if !VMMS.contains(&self.vmm.as_str()) {
            return Some(format!("`vmm` is {:?}; there are {}", self.vmm, VMMS.join(", ")));
        }
        if (self.kind == Kind::Verdict) == self.findings.is_empty() {
            return Some("a verdict has `findings`, all else has not".to_owned());
        }
        if self.theirs.is_some() == (self.kind == Kind::Verdict) {
            return Some("a verdict has no `theirs`, all else has".to_owned());
        }
        if let Some(check) = self.findings.keys().find(|check| !known.contains(&check.as_str())) {
            return Some(format!("there is no check {check}; there are {}", known.join(", ")));
        }
        let mut patterns = self.findings.values().chain(&self.theirs);
        let wide = patterns.find(|pattern| pattern.0.is_match(""));
        wide.map(|pattern| format!("{:?} fits any text", pattern.0.as_str()))
    }
}

/// All of them, and which were seen.
#[derive(Clone, Debug)]
pub struct Differences {
    all: Vec<Difference>,
    seen: BTreeSet<String>,
    /// Cases that were compared: only what they should have shown can be missed.
    compared: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    difference: Vec<Difference>,
}

impl Differences {
    /// Those of the file.
    pub fn embedded() -> Result<Self, ScenarioError> {
        Self::parse(NAME, EMBEDDED)
    }

    fn parse(name: &str, text: &str) -> Result<Self, ScenarioError> {
        let file: File = toml::from_str(text).map_err(|e| ScenarioError::syntax(name, text, &e))?;
        let mut names = BTreeSet::new();
        for difference in &file.difference {
            if !names.insert(&difference.name) {
                let message = format!("there are two differences named {}", difference.name);
                return Err(ScenarioError::sense(name, message));
            }
            if let Some(why) = difference.nonsense() {
                let message = format!("{}: {why}", difference.name);
                return Err(ScenarioError::sense(name, message));
            }
        }
        Ok(Self { all: file.difference, seen: BTreeSet::new(), compared: BTreeSet::new() })
    }

    /// The one that `differs`, between our VMM and `vmm` in `case`, is; the first that fits.
    pub fn find(&mut self, vmm: &str, case: &str, differs: &Differs) -> Option<&Difference> {
        let found = self.all.iter().find(|difference| difference.is(vmm, case, differs))?;
        self.seen.insert(found.name.clone());
        Some(found)
    }

    /// Those as which `vmm` has failed a case that ours passes, if all it has to say is known.
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

    /// Those that cases without a name of their own may show.
    pub fn anywhere(mut self) -> Self {
        self.all.retain(|difference| difference.anywhere || difference.cases.is_empty());
        self.all.iter_mut().for_each(|difference| difference.cases.clear());
        self
    }

    /// Takes note that a case was compared: what another one would have shown is not known.
    pub fn compared(&mut self, case: &str) {
        self.compared.insert(case.to_owned());
    }

    /// Those of `vmm` that the cases which were compared should have shown, and have not.
    pub fn unseen(&self, vmm: &str) -> impl Iterator<Item = &Difference> {
        let due = |d: &Difference| {
            let mut compared = self.compared.iter();
            compared.any(|case| d.cases.is_empty() || d.is_about(case))
        };
        let unseen = move |d: &&Difference| !d.rare && !self.seen.contains(&d.name) && due(d);
        self.of(vmm).filter(unseen)
    }

    /// The same where only verdicts are looked at.
    pub fn unseen_verdicts(&self, vmm: &str) -> impl Iterator<Item = &Difference> {
        self.unseen(vmm).filter(|d| d.kind == Kind::Verdict)
    }

    /// Those of `vmm`.
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

    fn differs(kind: Kind, first: &str, second: &str) -> Differs {
        Differs { kind, first: first.into(), second: second.into() }
    }

    #[rstest]
    #[case("qemu", "refused/no-vmm[a=1]", Kind::Verdict, "pid: process 7 has ended", Some("lost"))]
    #[case("mock", "refused/no-vmm[a=1]", Kind::Verdict, "pid: process 7 has ended", None)]
    #[case("qemu", "update/running", Kind::Verdict, "pid: process 7 has ended", None)]
    #[case("qemu", "refused/no-vmm[a=1]", Kind::Ending, "pid: process 7 has ended", None)]
    #[case("qemu", "refused/no-vmm[a=1]", Kind::Verdict, "ram: changed", None)]
    #[case("qemu", "update/running", Kind::Events, "step 1: ", Some("fewer-events"))]
    fn a_difference_has_its_place(
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
    fn a_failure_of_ours_is_never_meant() {
        let mut differences = Differences::parse("f", FILE).unwrap();
        let died = "pid: process 7 has ended";
        let both = differs(Kind::Verdict, "ram: changed", died);
        assert!(differences.find("qemu", "refused/no-vmm[a=1]", &both).is_none());
    }

    #[test]
    fn ours_counts_where_it_is_named() {
        let mut differences = Differences::parse("f", FILE).unwrap();
        assert!(differences.find("qemu", "a/b", &differs(Kind::Events, "RESET", ": ")).is_none());
    }

    #[test]
    fn what_was_not_seen_is_known() {
        let mut differences = Differences::parse("f", FILE).unwrap();
        differences.find("qemu", "a/b", &differs(Kind::Events, "STOP", "x: ")).unwrap();
        let unseen = |differences: &Differences| -> Vec<String> {
            differences.unseen("qemu").map(|d| d.name.clone()).collect()
        };
        // Its cases were all ignored.
        assert_eq!(unseen(&differences), [""; 0]);
        // One was not; that another was says nothing about it.
        differences.compared("refused/no-vmm[a=1]");
        assert_eq!(unseen(&differences), ["lost"]);
        assert_eq!(differences.unseen_verdicts("qemu").count(), 1);
        let died = differs(Kind::Verdict, PASS, "pid: process 7 has ended");
        differences.find("qemu", "refused/no-vmm[a=2]", &died).unwrap();
        assert_eq!(unseen(&differences), [""; 0]);
    }

    #[rstest]
    #[case("vmm = \"qemu\"", "vmm = \"cpr-vmm\"", "`vmm` is \"cpr-vmm\"")]
    #[case("vmm = \"qemu\"", "vmm = \"qmeu\"", "`vmm` is \"qmeu\"")]
    #[case("pid = ", "pidd = ", "there is no check pidd")]
    #[case("\" has ended\"", "\"\"", "\"\" fits any text")]
    #[case("\" has ended\"", "\".*\"", "\".*\" fits any text")]
    #[case("findings = { pid = \" has ended\" }", "theirs = \"x\"", "a verdict has `findings`")]
    #[case("theirs = \": $\"", "", "a verdict has no `theirs`, all else has")]
    fn what_proves_nothing_is_an_error(
        #[case] right: &str,
        #[case] wrong: &str,
        #[case] why: &str,
    ) {
        assert!(FILE.contains(right));
        let error = Differences::parse("f", &FILE.replacen(right, wrong, 1)).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }

    #[test]
    fn another_check_is_another_difference() {
        let mut differences = Differences::parse("f", FILE).unwrap();
        let said = differs(Kind::Verdict, PASS, "ram: process 7 has ended");
        assert!(differences.find("qemu", "refused/no-vmm[a=1]", &said).is_none());
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
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
    fn the_file_is_right() {
        Differences::embedded().unwrap();
    }
}
