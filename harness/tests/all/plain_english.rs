//! Phrases that were taken out of the texts of this repository do not come back.

use std::path::Path;
use std::process::Command;
use std::{fs, str};

use regex::Regex;
use serde::Deserialize;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// Files that quote the phrases: the list, the guide, which shows what to write instead, and this one.
const QUOTES: [&str; 3] =
    ["ci/phrases.toml", "CONTRIBUTING.md", "harness/tests/all/plain_english.rs"];

#[derive(Deserialize)]
struct List {
    phrase: Vec<Phrase>,
}

#[derive(Deserialize)]
struct Phrase {
    text: String,
    reason: String,
}

/// Each line of `text` that contains one of `phrases`, and the reason why it must not.
fn found(phrases: &[(Regex, String)], file: &str, text: &str) -> Vec<String> {
    let lines = text.lines().zip(1..);
    lines
        .flat_map(|(line, n)| {
            let here = phrases.iter().filter_map(move |(regex, reason)| {
                let found = regex.find(line)?;
                Some(format!("{file}:{n}: \"{}\": {reason}", found.as_str()))
            });
            here.collect::<Vec<_>>()
        })
        .collect()
}

fn phrases() -> Vec<(Regex, String)> {
    let text = fs::read_to_string(Path::new(ROOT).join(QUOTES[0])).unwrap();
    let list: List = toml::from_str(&text).unwrap();
    list.phrase.into_iter().map(|p| (Regex::new(&p.text).unwrap(), p.reason)).collect()
}

#[test]
fn no_phrase_of_the_list_is_in_tracked_text() {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(ROOT).output().unwrap();
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let files: Vec<&str> = str::from_utf8(&listed.stdout).unwrap().split('\0').collect();
    let phrases = phrases();
    let mut all = Vec::new();
    for file in files.iter().filter(|file| !file.is_empty() && !QUOTES.contains(file)) {
        // What is not text is not read by people.
        let Ok(text) = fs::read_to_string(Path::new(ROOT).join(file)) else { continue };
        all.extend(found(&phrases, file, &text));
    }
    assert!(all.is_empty(), "{} phrases of ci/phrases.toml:\n{}", all.len(), all.join("\n"));
}

#[test]
fn a_phrase_is_found_and_named_with_its_place() {
    let told = found(&phrases(), "a.md", "good\n\"lots\" is no size\n");
    let expected = "a.md:2: \"is no size\": write \"is not a size\" or \"invalid size\"";
    assert_eq!(told, [expected]);
}
