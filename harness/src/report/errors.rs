//! The table of all errors that operators read when an update does not succeed: `scenarios/ERRORS.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use super::choice::{self, Choice, holds_for, split};
use crate::run::{Report, Verdict};
use crate::scenario::Case;

const HEADER: &str = "\
# Errors

How each update ends that must not succeed, and the line that its operator reads. *Refused*: in the
answer to `migrate` or to setting its parameters, before the guest has stopped. *Failed*: later, in
`query-migrate`; the guest goes on as before.

Made by a full run, never by hand: `cargo run --release -- run --errors scenarios/ERRORS.md`;
`--check-errors scenarios/ERRORS.md` fails where a line differs. `<vmm>`, `<work>`, `<evidence>` and
`N` stand for what differs from run to run. A scenario is told apart by the values of its matrix
only where they matter.

| scenario | what is wrong | the update is | error |
|---|---|---|---|
";

/// One row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The scenario, with the values of its matrix that matter.
    pub scenario: String,
    /// What was wrong with the update.
    pub what: String,
    /// How it ended.
    pub ended: String,
    /// The line.
    pub error: String,
}

impl Row {
    fn parse(line: &str) -> Option<Self> {
        // A bar inside a cell is escaped.
        let line = line.strip_prefix("| ")?.strip_suffix(" |")?.replace("\\|", "\0");
        let cells: Vec<String> = line.split(" | ").map(|cell| cell.replace('\0', "|")).collect();
        let [scenario, what, ended, error] = cells.try_into().ok()?;
        let error = error.strip_prefix("`` ")?.strip_suffix(" ``")?.to_owned();
        Some(Self { scenario, what, ended, error })
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { scenario, what, ended, error } = self;
        let error = error.replace('|', "\\|");
        write!(f, "| {scenario} | {what} | {ended} | `` {error} `` |")
    }
}

/// One update of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    scenario: String,
    choice: Choice,
    what: String,
    ended: String,
    error: String,
}

/// What becomes of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It is written.
    Write,
    /// It is compared.
    Check,
}

/// The table, while the cases run.
pub struct Errors {
    path: PathBuf,
    wish: Wish,
    old: String,
    seen: Vec<Seen>,
    incomplete: bool,
}

impl Errors {
    /// The table in the file `path`.
    pub fn new(path: &Path, wish: Wish) -> io::Result<Self> {
        let old = match fs::read_to_string(path) {
            Err(e) if wish == Wish::Write && e.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        Ok(Self { path: path.to_owned(), wish, old, seen: Vec::new(), incomplete: false })
    }

    /// One case is done.
    pub fn case(&mut self, case: &Case, report: &Report) {
        let (scenario, choice) = split(&case.name);
        match report.verdict {
            Verdict::Pass => {}
            // What it would have shown here is known from where it could run.
            Verdict::Ignored(_) => return self.take_over(case, &scenario, &choice),
            Verdict::Fail(_) | Verdict::Broken(_) => self.incomplete = true,
        }
        self.seen.extend(report.failed_updates.iter().map(|failed| Seen {
            scenario: scenario.clone(),
            choice: choice.clone(),
            what: failed.what.clone(),
            ended: failed.ended.clone(),
            error: failed.error.clone(),
        }));
    }

    fn take_over(&mut self, case: &Case, scenario: &str, choice: &Choice) {
        let failures = case.failures();
        for row in rows_of(&self.old) {
            if failures.contains(&row.what) && holds_for(&row.scenario, scenario, choice) {
                let Row { what, ended, error, .. } = row;
                let (scenario, choice) = (scenario.to_owned(), choice.clone());
                self.seen.push(Seen { scenario, choice, what, ended, error });
            }
        }
    }

    /// Writes the table, or compares; the lines that are to be printed, and whether all is well.
    pub fn finish(&self) -> io::Result<(Vec<String>, bool)> {
        let path = self.path.display();
        if self.incomplete {
            let told = format!("{path} is not looked at: some cases have failed");
            return Ok((vec![told], true));
        }
        let new = rows(&self.seen);
        let text: String = new.iter().map(|row| format!("{row}\n")).collect();
        let text = format!("{HEADER}{text}");
        if self.wish == Wish::Write {
            fs::write(&self.path, text)?;
            return Ok((vec![format!("{} errors in {path}", new.len())], true));
        }
        if text == self.old {
            return Ok((vec![format!("{} errors, as in {path}", new.len())], true));
        }
        let old: BTreeSet<Row> = rows_of(&self.old).collect();
        let new: BTreeSet<Row> = new.into_iter().collect();
        let mut told = vec![format!(
            "{path} is not what this run has shown (- there, + here); --errors {path} writes it anew"
        )];
        told.extend(old.difference(&new).map(|row| format!("- {row}")));
        told.extend(new.difference(&old).map(|row| format!("+ {row}")));
        Ok((told, false))
    }
}

/// The rows of a table.
pub fn rows_of(text: &str) -> impl Iterator<Item = Row> {
    text.lines().filter_map(Row::parse)
}

/// True if a row of `told` (a scenario, with the values that matter) is about this case.
pub fn is_about(told: &str, case: &Case) -> bool {
    let (scenario, choice) = split(&case.name);
    holds_for(told, &scenario, &choice)
}

/// One row a failure; where its lines differ, one row a line, with the values that make the
/// difference.
fn rows(seen: &[Seen]) -> Vec<Row> {
    let mut failures: BTreeMap<(&str, &str), Vec<&Seen>> = BTreeMap::new();
    for one in seen {
        failures.entry((&one.scenario, &one.what)).or_default().push(one);
    }
    let mut rows = Vec::new();
    for ((scenario, what), all) in failures {
        let mut lines: BTreeMap<(&str, &str), Vec<&Seen>> = BTreeMap::new();
        for one in &all {
            lines.entry((&one.ended, &one.error)).or_default().push(one);
        }
        for ((ended, error), of_line) in lines {
            rows.push(Row {
                scenario: choice::told(scenario, choices(&of_line), choices(&all)),
                what: what.to_owned(),
                ended: ended.to_owned(),
                error: error.to_owned(),
            });
        }
    }
    rows.sort();
    rows
}

fn choices<'a>(seen: &'a [&'a Seen]) -> impl Iterator<Item = &'a Choice> {
    seen.iter().map(|one| &one.choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(case: &str, what: &str, error: &str) -> Seen {
        let (scenario, choice) = split(case);
        let (what, ended, error) = (what.into(), "refused".into(), error.into());
        Seen { scenario, choice, what, ended, error }
    }

    #[test]
    fn only_the_values_that_matter_are_told() {
        let all = [
            seen("a/b[cpus=1,guest=running]", "command x", "this VM has 1"),
            seen("a/b[cpus=1,guest=stopped]", "command x", "this VM has 1"),
            seen("a/b[cpus=2,guest=running]", "command x", "this VM has more"),
            seen("a/b[cpus=4,guest=stopped]", "command x", "this VM has more"),
            seen("a/b[cpus=2,guest=running]", "command x", "this VM has more"),
            seen("a/b[cpus=1,guest=running]", "command y", "on|off"),
            seen("a/a[cpus=1]", "nothing", "other"),
        ];
        let text: Vec<String> = rows(&all).iter().map(Row::to_string).collect();
        insta::assert_snapshot!(text.join("\n"), @r"
        | a/a | nothing | refused | `` other `` |
        | a/b | command y | refused | `` on\|off `` |
        | a/b[cpus=1] | command x | refused | `` this VM has 1 `` |
        | a/b[cpus=2,cpus=4] | command x | refused | `` this VM has more `` |
        ");
        let again: Vec<Row> = rows_of(&text.join("\n")).collect();
        assert_eq!(again, rows(&all));
    }
}
