//! Tests the path of a bug in the real VMM from `explore` to the timeline of its smallest scenario.

use std::path::Path;

use assert_cmd::Command;
use libtest_mimic::Trial;

use crate::common;

/// A bug that needs two updates to show.
const PLANT: &str = "--vmm-arg=--plant=never-over";
/// The scenario that `explore` writes for it.
const SCENARIO: &str = "found/migrate-migrate.toml";

/// The tests of this module.
pub fn trials() -> Vec<Trial> {
    let name = "bug_is_found_shrunk_written_replayed_and_shown";
    vec![common::trial(name, common::kvm_missing(), is_found)]
}

/// A terminal session of consecutive commands.
struct Session {
    folder: tempfile::TempDir,
    transcript: String,
}

impl Session {
    /// Runs the program with `words`, which must exit with `code`; returns its standard output.
    fn types(&mut self, words: &[&str], code: i32) -> String {
        let mut command = Command::new(common::binary());
        let done = command.current_dir(&self.folder).args(words).assert().code(code);
        let told = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
        let line = format!("$ cpr-harness {}\n{told}\n", words.join(" "));
        self.transcript.push_str(&redacted(&line, self.folder.path()));
        told
    }

    /// The findings in an evidence folder.
    fn findings(&self, evidence: &str) -> String {
        let path = self.folder.path().join(evidence).join("found/migrate-migrate/verdict.json");
        let text = std::fs::read_to_string(path).unwrap();
        let verdict: serde_json::Value = serde_json::from_str(&text).unwrap();
        verdict["verdict"].to_string()
    }
}

/// The arguments in the last line that starts with `what`, without the program.
fn words<'a>(told: &'a str, what: &str) -> Vec<&'a str> {
    let line = told.lines().rev().find_map(|line| line.strip_prefix(what)).unwrap();
    let mut words = line.split_ascii_whitespace();
    assert_eq!(Path::new(words.next().unwrap()), common::binary());
    words.collect()
}

/// Replaces what differs from run to run or from host to host.
fn redacted(text: &str, folder: &Path) -> String {
    let path = |path: &Path| regex::escape(&path.display().to_string());
    let mut text = text.to_owned();
    for (pattern, with) in [
        (path(common::binary()), "cpr-harness"),
        (path(folder), "<folder>"),
        (path(&std::env::temp_dir()) + r"/cpr-\w+", "<work>"),
        (r"in \d+\.\d+ s".to_owned(), "in <time>"),
        (r"harness 0\.1\.0 \([^)]*\)".to_owned(), "harness <version>"),
        (r"(blackout .*|no blackout seen) +\d+\.\d+ s".to_owned(), "<blackout> <time>"),
        // It may be missing on a busy host.
        (r"(?m)^.* seen by the guest: .*\n".to_owned(), ""),
        (r"(?m)^ +\d+\.\d{3} +\d+\.\d{3}  ".to_owned(), "      <time>       <time>  "),
        (
            r"kernel \S+, \d+ CPUs, seed 5, \S+".to_owned(),
            "kernel <kernel>, <cpus> CPUs, seed 5, <date>",
        ),
    ] {
        text = regex::Regex::new(&pattern).unwrap().replace_all(&text, with).into_owned();
    }
    text
}

fn is_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut session = Session { folder, transcript: String::new() };
    let told = session.types(&["explore", "--seed", "5", "--steps", "200", PLANT], 1);
    let first = session.findings("evidence");
    assert!(first.contains("There's a migration process in progress"), "{first}");

    // The scenario fails in the same way with `run`, and passes without the bug.
    session.types(&["run", SCENARIO, PLANT, "--evidence", "again"], 1);
    assert_eq!(first, session.findings("again"));
    session.types(&["run", SCENARIO, "--evidence", "clean"], 0);

    let again = session.types(&words(&told, "replay: "), 1);
    assert!(again.contains("same verdict as recorded: outcome failed at step 3"), "{again}");
    assert_eq!(first, session.findings("evidence/found/replay"));
    let show = words(&told, "show: ");
    session.types(&[&show[..], &["--source", "harness"]].concat(), 0);
    insta::assert_snapshot!("explored", session.transcript);
}
