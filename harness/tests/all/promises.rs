//! Every promise of the READMEs has a test: each mark in them has an entry in
//! `scenarios/promises.toml`, and the tests that the entries name exist. So do the files that
//! `scenarios/not-driven.toml` names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use cpr_harness::scenario::Case;
use cpr_harness::scenario::set::Set;
use regex::Regex;
use rstest::rstest;
use serde::Deserialize;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// The tests of each promise.
const LIST: &str = "scenarios/promises.toml";
/// Parts of the interface that no scenario drives, and what tests them.
const NOT_DRIVEN: &str = "scenarios/not-driven.toml";
/// The files whose promises are marked.
const MARKED: [&str; 4] = ["README.md", "SECURITY.md", "vmm/README.md", "harness/README.md"];

/// The promises in [`LIST`], by the ID in their marks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Promises {
    /// With the tests that fail if the promise is broken.
    tested: BTreeMap<String, Vec<String>>,
    /// With the reason why no test does.
    untested: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct NotDriven {
    not_driven: Vec<Part>,
}

#[derive(Deserialize)]
struct Part {
    item: String,
    reason: String,
}

/// A promise in a text.
#[derive(Debug, PartialEq, Eq)]
struct Mark {
    id: String,
    /// File and line.
    place: String,
}

fn read(file: &str) -> String {
    let path = Path::new(ROOT).join(file);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {file}: {error}"))
}

fn promises() -> Promises {
    toml::from_str(&read(LIST)).unwrap_or_else(|error| panic!("{LIST}: {error}"))
}

/// The marks in `text`. Those that are invalid, or would change the page, go to `wrong`.
fn marks(file: &str, text: &str, wrong: &mut Vec<String>) -> Vec<Mark> {
    let any = Regex::new(r"<!--\s*promise").unwrap();
    let valid = Regex::new("^<!-- promise: ([a-z0-9]+(?:-[a-z0-9]+)*) -->").unwrap();
    let (mut in_code, mut found) = (false, Vec::new());
    for (line, number) in text.lines().zip(1..) {
        in_code ^= line.trim_start().starts_with("```");
        for mark in any.find_iter(line) {
            let (before, rest) = line.split_at(mark.start());
            let place = format!("{file}:{number}");
            match valid.captures(rest) {
                None => wrong.push(format!("{place}: write `<!-- promise: kebab-case-id -->`")),
                Some(_) if in_code => {
                    wrong.push(format!("{place}: readers see a mark in code: move it out"));
                }
                // A comment at the start of a line ends a paragraph and its formatting.
                Some(_) if before.trim().is_empty() => wrong.push(format!(
                    "{place}: a mark begins the line: join it to the line of its sentence"
                )),
                Some(id) => found.push(Mark { id: id[1].to_owned(), place }),
            }
        }
    }
    found
}

/// Why `test` does not exist, if so.
fn missing(test: &str, cases: &[Case]) -> Option<String> {
    let Some((file, name)) = test.split_once("::") else {
        let found = !test.is_empty() && cases.iter().any(|case| case.name.starts_with(test));
        let why = || format!("no case's name begins with \"{test}\": `cpr-harness list` has all");
        return (!found).then(why);
    };
    let text = match fs::read_to_string(Path::new(ROOT).join(file)) {
        Ok(text) => text,
        Err(error) => {
            return Some(format!("cannot read {file}: {error}: name the file's new path"));
        }
    };
    // A function that no test calls is refused by the compiler. Rows: `harness/tests/faults/mock.rs`.
    let name = regex::escape(name);
    let test = format!(r"(?m)^\s*(?:(?:pub )?fn {name}\b|{name}: \w+, \w+ =>)");
    let found = Regex::new(&test).unwrap().is_match(&text);
    (!found).then(|| format!("{file} has no test {name}: name the function, or the table's row"))
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} to correct:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn marks_and_entries_match() {
    let promises = promises();
    let listed: BTreeSet<&str> =
        promises.tested.keys().chain(promises.untested.keys()).map(String::as_str).collect();
    let mut wrong = Vec::new();
    let marks: Vec<Mark> =
        MARKED.iter().flat_map(|file| marks(file, &read(file), &mut wrong)).collect();
    let unlisted = marks.iter().filter(|mark| !listed.contains(mark.id.as_str()));
    wrong.extend(unlisted.map(|Mark { id, place }| {
        format!(
            "{place}: {LIST} has no {id}: list the tests that fail if the promise is broken, \
             or the reason why there is none"
        )
    }));
    let unmarked = listed.iter().filter(|id| !marks.iter().any(|mark| mark.id == **id));
    wrong.extend(unmarked.map(|id| {
        format!("{LIST}: {id} is not marked in {MARKED:?}: mark its sentence, or remove the entry")
    }));
    let both = promises.tested.keys().filter(|id| promises.untested.contains_key(*id));
    wrong.extend(both.map(|id| format!("{LIST}: {id} has tests: remove it from [untested]")));
    none(&wrong);
}

#[test]
fn every_promise_has_tests_that_exist_or_a_reason() {
    let Promises { tested, untested } = promises();
    let cases = Set::embedded().unwrap().cases;
    let mut wrong = Vec::new();
    for (id, tests) in &tested {
        if tests.is_empty() {
            wrong.push(format!("{LIST}: {id} has no test: list one, or move it to [untested]"));
        }
        let missing = tests.iter().filter_map(|test| missing(test, &cases));
        wrong.extend(missing.map(|why| format!("{LIST}: {id}: {why}")));
    }
    let silent = untested.iter().filter(|(_, reason)| reason.trim().is_empty());
    wrong.extend(silent.map(|(id, _)| format!("{LIST}: {id} has no reason: say why no test does")));
    none(&wrong);
}

#[test]
fn files_that_test_what_no_scenario_drives_exist() {
    let list: NotDriven = toml::from_str(&read(NOT_DRIVEN)).unwrap();
    let path = Regex::new(r"[\w/-]+\.rs|\bvmm/[\w/-]+").unwrap();
    let (mut named, mut wrong) = (0, Vec::new());
    for Part { item, reason } in &list.not_driven {
        for path in path.find_iter(reason) {
            named += 1;
            if !Path::new(ROOT).join(path.as_str()).exists() {
                wrong.push(format!(
                    "{NOT_DRIVEN}: {item}: there is no {}: name what tests it now, with its folder",
                    path.as_str()
                ));
            }
        }
    }
    // Otherwise the pattern has stopped finding them.
    assert!(named >= 5, "only {named} files are named in {NOT_DRIVEN}");
    none(&wrong);
}

#[test]
fn invalid_marks_are_named_with_their_place() {
    let text = "Kept. <!-- promise: a-b --> <!-- promise: c -->\n<!-- promise: d -->\n\
        Bad. <!-- promise:e -->\n```\nx <!-- promise: f -->\n```\nKept. <!-- promise: g -->\n";
    let mut wrong = Vec::new();
    let found = marks("a.md", text, &mut wrong);
    let mark = |id: &str, place: &str| Mark { id: id.to_owned(), place: place.to_owned() };
    assert_eq!(found, [mark("a-b", "a.md:1"), mark("c", "a.md:1"), mark("g", "a.md:7")]);
    let expected = [
        "a.md:2: a mark begins the line: join it to the line of its sentence",
        "a.md:3: write `<!-- promise: kebab-case-id -->`",
        "a.md:5: readers see a mark in code: move it out",
    ];
    assert_eq!(wrong, expected);
}

#[rstest]
#[case("update/running", None)]
#[case("update/walking", Some("no case's name begins with \"update/walking\""))]
#[case("", Some("no case's name begins with \"\""))]
#[case("harness/tests/all/promises.rs::missing_tests_are_named", None)]
#[case("harness/tests/all/promises.rs::no_such_test", Some("has no test no_such_test"))]
#[case("harness/tests/all/no_such_file.rs::a", Some("cannot read harness/tests/all/no_such_file"))]
#[case("harness/tests/faults/mock.rs::pid_changed", None)]
#[case("harness/tests/faults/mock.rs::pid_chang", Some("has no test pid_chang:"))]
fn missing_tests_are_named(#[case] test: &str, #[case] expected: Option<&str>) {
    let told = missing(test, &Set::embedded().unwrap().cases);
    match expected {
        None => assert_eq!(told, None),
        Some(why) => assert!(told.as_ref().is_some_and(|told| told.contains(why)), "{told:?}"),
    }
}
