//! Phrases that were taken out of the texts of this repository do not come back.

use std::fs;
use std::path::{Path, PathBuf};

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

/// The files below `folder`, but for what builds, runs and installers leave there.
fn files(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let installed = folder.ends_with("ci") && name.starts_with('.');
        let pending = name.ends_with(".snap.new") || name.ends_with(".pending-snap");
        if installed || pending || ["target", "evidence", ".git"].contains(&name.as_str()) {
            continue;
        }
        match path.is_dir() {
            true => files(&path, all),
            false => all.push(path),
        }
    }
}

#[test]
fn no_phrase_of_the_list_is_in_the_repository() {
    let (mut all, mut told) = (Vec::new(), Vec::new());
    files(Path::new(ROOT), &mut all);
    assert!(all.len() > 500, "only {} files were found", all.len());
    let phrases = phrases();
    for path in all {
        let name = path.strip_prefix(ROOT).unwrap().to_string_lossy().into_owned();
        // What is not text is not read by people.
        if let Ok(text) = fs::read_to_string(&path)
            && !QUOTES.contains(&name.as_str())
        {
            told.extend(found(&phrases, &name, &text));
        }
    }
    assert!(told.is_empty(), "{} phrases of ci/phrases.toml:\n{}", told.len(), told.join("\n"));
}

#[test]
fn a_phrase_is_found_and_named_with_its_place() {
    let told = found(&phrases(), "a.md", "good\n\"lots\" is no size\n");
    let expected = "a.md:2: \"is no size\": write \"is not a size\" or \"invalid size\"";
    assert_eq!(told, [expected]);
}
