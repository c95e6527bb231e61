//! Annotations and a summary for GitHub Actions.

use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::reasons::{self, Reason};
use super::record::{Entry, Record};
use super::stdout::say;
use crate::run::rounds::without_round;
use crate::run::{Report, Verdict};
use crate::scenario::set::{FOLDER, name};

/// Most errors that GitHub shows for one step of a job.
const MOST: usize = 10;

/// Prints an annotation for each reason of failures, at the step of the scenario that failed, if this
/// runs on GitHub. `scenarios` are the files and folders of the scenarios, if they are not embedded.
pub fn annotate(record: &Record, scenarios: Option<&[PathBuf]>) {
    if env::var_os("GITHUB_ACTIONS").is_some_and(|is| is == "true") {
        let workspace = env::var_os("GITHUB_WORKSPACE").map(PathBuf::from).unwrap_or_default();
        let place = |report: &Report| place(report, scenarios?, &workspace);
        annotations(record, place).iter().for_each(say);
    }
}

/// Appends a table of the run to the summary of a job, if this runs on GitHub.
pub fn summarize(record: &Record) -> io::Result<()> {
    match env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()) {
        Some(path) => {
            let mut file = File::options().create(true).append(true).open(path)?;
            file.write_all(table(record).as_bytes())
        }
        None => Ok(()),
    }
}

fn failed(record: &Record) -> Vec<Reason<'_>> {
    reasons::of(record.cases.iter().filter(|entry| entry.failed()).map(|entry| &entry.report))
}

fn annotations(
    record: &Record,
    place: impl Fn(&Report) -> Option<(PathBuf, usize)>,
) -> Vec<String> {
    let annotation = |reason: &Reason<'_>| {
        let place = place(reason.first)
            .map(|(file, line)| format!("file={},line={line},", property(&file.to_string_lossy())));
        let title = match reason.count {
            1 => reason.first.case.clone(),
            count => format!("{} and {} more", reason.first.case, count - 1),
        };
        let lines = [vec![reason.finding()], reason.first.repro_commands()].concat().join("\n");
        let place = place.unwrap_or_default();
        format!("::error {place}title={}::{}", property(&title), message(&lines))
    };
    failed(record).iter().take(MOST).map(annotation).collect()
}

/// Escapes the message of a workflow command.
fn message(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Escapes a property of a workflow command.
fn property(text: &str) -> String {
    message(text).replace(':', "%3A").replace(',', "%2C")
}

/// Returns the file of a case, relative to `workspace`, and the line of the step that failed.
fn place(report: &Report, scenarios: &[PathBuf], workspace: &Path) -> Option<(PathBuf, usize)> {
    let scenario = without_round(&report.case).split('[').next()?;
    let default = [PathBuf::from(FOLDER)];
    let roots = if scenarios.is_empty() { &default } else { scenarios };
    let leaf = Path::new(scenario).file_name()?;
    let files = roots.iter().flat_map(|root| {
        let file = |path: PathBuf| path.with_added_extension("toml");
        [root.clone(), file(root.join(scenario)), file(root.join(leaf))]
    });
    let file = files.into_iter().find(|path| path.is_file() && name(path) == scenario)?;
    let line = line(&std::fs::read_to_string(&file).ok()?, report.failed_step.as_deref());
    let absolute = std::path::absolute(&file).ok()?;
    let inside = absolute.strip_prefix(workspace).map(Path::to_owned);
    Some((inside.unwrap_or(file), line))
}

/// Returns the line of `step` in the text of a scenario: of the last step of that name up to its
/// number, which may be larger than that in the file because of steps that stand for several.
fn line(text: &str, step: Option<&str>) -> usize {
    #[derive(Deserialize)]
    struct Steps {
        steps: Vec<Spanned<toml::Value>>,
    }
    let steps = toml::from_str(text).map_or_else(|_| Vec::new(), |Steps { steps }| steps);
    let (number, wanted) = step.and_then(parts).unwrap_or((1, "boot"));
    let is = |step: &&Spanned<toml::Value>| match step.get_ref() {
        toml::Value::String(name) => name == wanted,
        toml::Value::Table(table) => table.contains_key(wanted),
        _ => false,
    };
    let before = steps.iter().take(number).rfind(is);
    let found = before.or_else(|| steps.iter().find(is)).or(steps.first());
    let Range { start, .. } = found.map(Spanned::span).unwrap_or_default();
    text.get(..start).unwrap_or_default().matches('\n').count() + 1
}

/// Takes apart `step 3 (migrate)`.
fn parts(step: &str) -> Option<(usize, &str)> {
    let (number, name) = step.strip_prefix("step ")?.split_once(" (")?;
    Some((number.parse().ok()?, name.strip_suffix(')')?))
}

fn table(record: &Record) -> String {
    let count = |is: &dyn Fn(&Entry) -> bool| record.cases.iter().filter(|entry| is(entry)).count();
    let verdict = |entry: &Entry| entry.report.verdict.clone();
    let rows = [
        ("passed", count(&|entry| verdict(entry) == Verdict::Pass)),
        ("failed", count(&Entry::failed)),
        ("known differences", count(&|entry| !entry.known.is_empty())),
        ("could not be run", count(&|entry| matches!(verdict(entry), Verdict::Broken(_)))),
        ("not run", record.not_run.len()),
        ("ignored", count(&|entry| matches!(verdict(entry), Verdict::Ignored(_)))),
    ];
    let vmms: Vec<&str> = record.runs.iter().map(|run| run.vmm.title.as_str()).collect();
    let mut text = format!("### {}\n\n| cases | |\n|---|---:|\n", vmms.join(", "));
    for (what, count) in rows.into_iter().filter(|(what, count)| *count > 0 || *what == "failed") {
        text.push_str(&format!("| {what} | {count} |\n"));
    }
    let reasons = failed(record);
    if !reasons.is_empty() {
        text.push_str("\n| cases | reason | first | again |\n|---:|---|---|---|\n");
    }
    for reason in reasons {
        let Report { case, replay, .. } = reason.first;
        let cells = [reason.finding(), case.clone(), format!("`{replay}`")]
            .map(|cell| cell.replace('|', "\\|"));
        text.push_str(&format!("| {} | {} |\n", reason.count, cells.join(" | ")));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Finding;

    const TEXT: &str = "summary = \"\"\nsteps = [\n  \"boot\",\n  { migrate = { times = \"${n}\" } },\n  { wait = { sweeps = 1 } },\n  { migrate = {} },\n]\n[matrix]\nn = [1]\n";

    fn entry(case: &str, verdict: Verdict) -> Entry {
        let of = Report::of(case, format!("replay {case}"), String::new());
        let failed_step = Some("step 4 (migrate)".to_owned());
        Entry {
            summary: String::new(),
            theme: String::new(),
            evidence: None,
            run: 0,
            known: Default::default(),
            report: Report { verdict, failed_step, ..of },
        }
    }

    fn record() -> Record {
        let failed = |n: u32| Verdict::Fail(vec![Finding::new("fds", format!("{n} | 100 % new"))]);
        let cases = vec![
            entry("a/b[n=1]", failed(1)),
            entry("a/b[n=1]@2", failed(2)),
            entry("a/c", Verdict::Pass),
        ];
        Record { cases, not_run: ["a/d".to_owned()].into(), ..Record::of(Vec::new()) }
    }

    #[test]
    fn a_reason_is_annotated_at_the_step_that_failed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("in/a/b.toml");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, TEXT).unwrap();
        let at = |root: &Path| {
            let scenarios = [root.to_owned()];
            annotations(&record(), |report| place(report, &scenarios, folder.path()))
        };
        let told = "::error file=in/a/b.toml,line=6,title=a/b[n=1] and 1 more::fds: 1 | 100 %25 new%0Areplay: replay a/b[n=1]";
        for root in [folder.path().join("in"), folder.path().join("in/a"), file.clone()] {
            assert_eq!(at(&root), [told], "{}", root.display());
        }
        let nowhere = told.replace("file=in/a/b.toml,line=6,", "");
        assert_eq!(at(&folder.path().join("else")), [nowhere]);
    }

    #[test]
    fn steps_are_found_by_number_and_name() {
        let lines =
            ["step 2 (migrate)", "step 3 (wait)", "step 9 (migrate)", "step 5 (quit)", "no"];
        assert_eq!(lines.map(|step| line(TEXT, Some(step))), [4, 5, 6, 3, 3]);
    }

    #[test]
    fn the_summary_counts_cases_and_reasons() {
        insta::assert_snapshot!(table(&record()), @r"
        ### 

        | cases | |
        |---|---:|
        | passed | 1 |
        | failed | 2 |
        | not run | 1 |

        | cases | reason | first | again |
        |---:|---|---|---|
        | 2 | fds: 1 \| 100 % new | a/b[n=1] | `replay a/b[n=1]` |
        ");
    }
}
