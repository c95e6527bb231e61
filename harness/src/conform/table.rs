//! `scenarios/CONFORMANCE.md`: what came of a comparison, as people read it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::differences::Difference;
use crate::report::choice::{self, Choice};

/// One case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The case.
    pub case: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Both do the same.
    Same,
    /// They differ in these ways, each of which is meant; and whether ours passes and theirs does.
    Meant {
        /// The names of the differences.
        names: BTreeSet<String>,
        /// Both pass.
        pass: bool,
    },
    /// They differ in a way that is not listed: how.
    Unlisted(Vec<String>),
    /// It was not compared: why.
    Ignored(String),
}

/// The whole file.
pub fn markdown<'a>(
    first: &str,
    second: &str,
    differences: impl Iterator<Item = &'a Difference>,
    rows: &[Row],
) -> String {
    let mut text = format!(
        "\
# Conformance

The same scenarios on two VMMs: {first}, and {second}. *The same*: both pass, with the same endings
of updates that must not succeed and the same events. A difference that is meant has a name, and its
reason is told below.

Made by `cargo run --release -- conform --vmm cpr-vmm --vmm qemu --write scenarios/CONFORMANCE.md`
from that run and from `differences.toml`, never by hand.

| cases | |
|---|---|
"
    );
    // Writing to a String cannot fail.
    for (what, count) in counts(rows) {
        let _ = writeln!(text, "| {count} | {what} |");
    }
    text.push_str(
        "\n## Differences\n\n| name | differs in | reason | upstream |\n|---|---|---|---|\n",
    );
    for difference in differences {
        let Difference { name, kind, reason, upstream, .. } = difference;
        let upstream = upstream.as_deref().unwrap_or("");
        let _ = writeln!(text, "| {name} | {kind} | {} | {} |", cell(reason), cell(upstream));
    }
    text.push_str("\n## Scenarios\n\n| scenario | cases | |\n|---|---|---|\n");
    for (scenario, count, outcome) in grouped(rows) {
        let _ = writeln!(text, "| {scenario} | {count} | {} |", cell(&outcome.to_string()));
    }
    text
}

/// How many cases came out how.
pub fn counts(rows: &[Row]) -> [(&'static str, usize); 5] {
    let count = |is: fn(&Outcome) -> bool| rows.iter().filter(|row| is(&row.outcome)).count();
    [
        ("the same", count(|outcome| *outcome == Outcome::Same)),
        (
            "pass on both, with differences that are meant",
            count(|outcome| matches!(outcome, Outcome::Meant { pass: true, .. })),
        ),
        (
            "pass on the first only, for reasons that are known",
            count(|outcome| matches!(outcome, Outcome::Meant { pass: false, .. })),
        ),
        ("differ in other ways", count(|outcome| matches!(outcome, Outcome::Unlisted(_)))),
        ("not compared", count(|outcome| matches!(outcome, Outcome::Ignored(_)))),
    ]
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Same => f.write_str("the same"),
            Self::Meant { names, pass } => {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let told = if *pass { "pass on both" } else { "differs" };
                write!(f, "{told}: {}", names.join(", "))
            }
            Self::Unlisted(told) => write!(f, "**not listed**: {}", told.join("; ")),
            Self::Ignored(why) => write!(f, "not compared: {why}"),
        }
    }
}

/// One row for each outcome of a scenario, with the values that make the difference.
fn grouped(rows: &[Row]) -> Vec<(String, usize, &Outcome)> {
    let mut scenarios: BTreeMap<String, Vec<(Choice, &Outcome)>> = BTreeMap::new();
    for row in rows {
        let (scenario, choice) = choice::split(&row.case);
        scenarios.entry(scenario).or_default().push((choice, &row.outcome));
    }
    let mut grouped = Vec::new();
    for (scenario, cases) in &scenarios {
        let outcomes: BTreeSet<&Outcome> = cases.iter().map(|(_, outcome)| *outcome).collect();
        for outcome in outcomes {
            let here = || cases.iter().filter(|(_, o)| *o == outcome).map(|(choice, _)| choice);
            let everywhere = cases.iter().map(|(choice, _)| choice);
            let told = choice::told(scenario, here(), everywhere);
            grouped.push((told, here().count(), outcome));
        }
    }
    grouped
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_as_it_is_written() {
        let row = |case: &str, outcome| Row { case: case.into(), outcome };
        let meant = |pass| Outcome::Meant { names: ["lost".to_owned()].into(), pass };
        let rows = [
            row("update/running[cpus=1]", Outcome::Same),
            row("update/running[cpus=2]", Outcome::Same),
            row("refused/no-vmm[command=true,guest=running]", meant(false)),
            row("refused/no-vmm[command=true,guest=stopped]", meant(false)),
            row("refused/no-vmm[command=yes,guest=stopped]", meant(true)),
            row("channel/full", Outcome::Unlisted(vec!["verdict: a | b".into()])),
            row("fault/x", Outcome::Ignored("no fail points".into())),
        ];
        let text = markdown("cpr-vmm 0.1.0", "QEMU 11.1.3", std::iter::empty(), &rows);
        insta::assert_snapshot!(text);
    }
}
