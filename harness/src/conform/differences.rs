//! The differences between our VMM and another that are meant: `scenarios/differences.toml`.

use std::collections::BTreeSet;

use regex::Regex;
use serde::Deserialize;

use super::compare::{self, Differs, Kind, PASS};
use crate::run::{Report, Verdict};
use crate::scenario::ScenarioError;

/// The file, as it was when this binary was built.
const EMBEDDED: &str = include_str!("../../../scenarios/differences.toml");
const NAME: &str = "differences.toml";

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
    /// What the other one says.
    pub theirs: Pattern,
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
            && self.theirs.0.is_match(&differs.second)
    }
}

/// All of them, and which were seen.
#[derive(Clone, Debug)]
pub struct Differences {
    all: Vec<Difference>,
    seen: BTreeSet<String>,
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
        }
        Ok(Self { all: file.difference, seen: BTreeSet::new() })
    }

    /// The one that `differs`, between our VMM and `vmm` in `case`, is; the first that fits.
    pub fn find(&mut self, vmm: &str, case: &str, differs: &Differs) -> Option<&Difference> {
        let found = self.all.iter().find(|difference| difference.is(vmm, case, differs))?;
        self.seen.insert(found.name.clone());
        Some(found)
    }

    /// Those as which `vmm` has failed a case that ours passes, if all it has to say is known.
    pub fn of_failure(&mut self, vmm: &str, report: &Report) -> Option<BTreeSet<String>> {
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

    /// Takes note that a case was not compared: what it would have shown is not known.
    pub fn not_compared(&mut self, vmm: &str, case: &str) {
        let about = |d: &&Difference| d.vmm == vmm && d.is_about(case);
        self.seen.extend(self.all.iter().filter(about).map(|d| d.name.clone()));
    }

    /// Those of `vmm` that a full run should have shown, and has not.
    pub fn unseen(&self, vmm: &str) -> impl Iterator<Item = &Difference> {
        self.all.iter().filter(move |d| d.vmm == vmm && !d.rare && !self.seen.contains(&d.name))
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
theirs = "pid: .* has ended"
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
        let unseen: Vec<_> = differences.unseen("qemu").map(|d| d.name.clone()).collect();
        assert_eq!(unseen, ["lost"]);
        differences.not_compared("qemu", "refused/no-vmm[a=1]");
        assert_eq!(differences.unseen("qemu").count(), 0);
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
