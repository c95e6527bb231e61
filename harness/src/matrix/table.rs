//! Formats the result of each route, for people and programs.

use std::collections::BTreeMap;

use serde::Serialize;

use super::build::{Build, letter};
use crate::run::{Report, Verdict};

/// A route and its result.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The route, in the letters of the builds.
    pub route: String,
    /// Why nothing was run, if so: the first update was refused, and its guest kept running.
    pub refused: Option<String>,
    /// The reports of the cases that were run.
    pub reports: Vec<Report>,
}

/// Number of cases by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Everything held.
    pub passed: usize,
    /// Something did not hold.
    pub failed: usize,
    /// The case was not run.
    pub ignored: usize,
    /// This machine could not run the case.
    pub broken: usize,
}

impl Row {
    /// How its cases ended.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for report in &self.reports {
            match report.verdict {
                Verdict::Pass => counts.passed += 1,
                Verdict::Fail(_) => counts.failed += 1,
                Verdict::Ignored(_) => counts.ignored += 1,
                Verdict::Broken(_) => counts.broken += 1,
            }
        }
        counts
    }

    /// Whether some case was not run because this machine lacks something.
    pub fn any_missed(&self) -> bool {
        self.reports.iter().any(|report| report.verdict.miss().is_some())
    }

    /// Whether this machine could not run the route: some case broke, or every one was ignored.
    pub fn could_not_be_run(&self) -> bool {
        let Counts { passed, failed, ignored, broken } = self.counts();
        broken > 0 || ignored > 0 && passed + failed == 0
    }
}

/// Lists the builds, and which of them are identical.
pub fn builds(builds: &[Build]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut same: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (index, build) in builds.iter().enumerate() {
        let letter = letter(index);
        let path = build.executable.display();
        lines.push(format!("{letter}  {}  xxh3 {}  {path}", build.title, build.xxh3));
        same.entry(&build.xxh3).or_default().push(letter);
    }
    for letters in same.values().filter(|letters| letters.len() > 1) {
        lines.push(format!("{} are the same, byte for byte", letters.join(" and ")));
    }
    lines
}

/// Formats a Markdown table with one row per route, then what was not run, and why.
pub fn markdown(rows: &[Row]) -> Vec<String> {
    let mut lines = vec![
        "| update | passed | failed | ignored | could not be run |".to_owned(),
        "|---|---|---|---|---|".to_owned(),
    ];
    for row in rows {
        let (Counts { passed, failed, ignored, broken }, route) = (row.counts(), &row.route);
        lines.push(match &row.refused {
            None => format!("| {route} | {passed} | {failed} | {ignored} | {broken} |"),
            Some(_) => format!("| {route} | refused | | | |"),
        });
    }
    for row in rows {
        let Some(why) = &row.refused else { continue };
        lines.push(format!("{}: refused, and the guest keeps running: {why}", row.route));
    }
    for row in rows {
        let mut ignored: BTreeMap<&str, usize> = BTreeMap::new();
        for report in &row.reports {
            if let Verdict::Ignored(why) = &report.verdict {
                *ignored.entry(why).or_default() += 1;
            }
        }
        let told =
            ignored.iter().map(|(why, count)| format!("{}: {count} ignored: {why}", row.route));
        lines.extend(told);
    }
    lines
}

/// Lists what failed, with the commands that show it and run it again.
pub fn failures(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for row in rows {
        for report in row.reports.iter().filter(|r| matches!(r.verdict, Verdict::Fail(_))) {
            lines.push(format!("failed: {}: {}", row.route, report.case));
            lines.extend(report.repro_commands().into_iter().map(|line| format!("  {line}")));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::mock::Mock;
    use crate::check::Finding;

    #[test]
    fn a_matrix_as_it_is_printed() {
        let build = |title: &str, xxh3: &str| Build {
            name: "cpr-vmm".into(),
            title: title.into(),
            executable: "/opt/cpr-vmm".into(),
            xxh3: xxh3.into(),
            backend: Arc::new(Mock::carried(None).unwrap()),
        };
        let report = |verdict| Report {
            verdict,
            ..Report::of(
                "update/running",
                "cpr-harness replay evidence/x --update-to b".into(),
                "cpr-harness show evidence/x".into(),
            )
        };
        let row = |route: &str, refused: Option<&str>, reports: &[Report]| Row {
            route: route.into(),
            refused: refused.map(str::to_owned),
            reports: reports.to_vec(),
        };
        let failed = Verdict::Fail(vec![Finding::new("ram", "guest RAM changed")]);
        let rows = [
            row("A → B", None, &[report(Verdict::Pass), report(failed)]),
            row("B → A", Some("it reads version 1"), &[]),
            row("A → B → A", None, &[report(Verdict::Ignored("no fail points".into()))]),
        ];
        let builds_are =
            [build("cpr-vmm 0.1.0", "1"), build("cpr-vmm 0.1.0", "1"), build("cpr-vmm 0.2.0", "2")];
        let mut lines = builds(&builds_are);
        lines.extend(markdown(&rows));
        lines.extend(failures(&rows));
        insta::assert_snapshot!(lines.join("\n"));
    }
}
