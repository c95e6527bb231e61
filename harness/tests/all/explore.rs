//! Tests of `explore`: what it finds, shrinks and writes, and that a seed determines the
//! exploration.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use assert_cmd::Command;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_cpr-harness"))
}

fn harness(folder: &Path, args: &[&str], code: i32) -> String {
    let mut command = Command::new(binary());
    let done = command.current_dir(folder).args(args).assert().code(code);
    String::from_utf8_lossy(&done.get_output().stdout).into_owned()
}

fn explore(folder: &Path, args: &[&str], code: i32) -> String {
    harness(folder, &[&["explore"], args].concat(), code)
}

/// Replaces what differs from run to run.
fn redacted(told: &str, folder: &Path) -> String {
    let path = |path: &Path| regex::escape(&path.display().to_string());
    let mut text = told.to_owned();
    for (pattern, with) in [
        (path(binary()), "cpr-harness"),
        (path(folder), "<folder>"),
        (path(&std::env::temp_dir()) + r"/cpr-\w+", "<work>"),
        (r"nothing found in .*".to_owned(), "nothing found in <time>"),
    ] {
        text = regex::Regex::new(&pattern).unwrap().replace_all(&text, with).into_owned();
    }
    text
}

#[test]
fn findings_do_not_depend_on_jobs() {
    let told = ["1", "3"].map(|jobs| {
        let folder = tempfile::tempdir().unwrap();
        let args = ["--backend", "mock", "--fault", "flip-byte", "--seed", "3", "--steps", "80"];
        let json = ["--jobs", jobs, "--json", "all.json", "--write", "here"];
        let told = explore(folder.path(), &[&args[..], &json].concat(), 1);
        let scenario = std::fs::read_to_string(folder.path().join("here/stop-migrate.toml"));
        let json = std::fs::read_to_string(folder.path().join("all.json")).unwrap();
        assert!(json.contains("\"scenario\": \"here/stop-migrate.toml\""), "{json}");
        (redacted(&told, folder.path()), scenario.unwrap())
    });
    assert_eq!(told[0], told[1]);
}

#[test]
fn correct_vmm_passes_and_leaves_no_evidence() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--backend", "mock", "--seed", "7", "--steps", "60", "--jobs", "2"];
    let told = explore(folder.path(), &args, 0);
    insta::assert_snapshot!(redacted(&told, folder.path()));
    let left: Vec<_> = std::fs::read_dir(folder.path().join("evidence/explore")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!folder.path().join("found").exists());
}

#[test]
fn printed_seed_repeats_the_exploration() {
    let folder = tempfile::tempdir().unwrap();
    let told = explore(folder.path(), &["--backend", "mock", "--steps", "12"], 0);
    let again = told.lines().next().and_then(|line| line.split("again: cpr-harness ").nth(1));
    let words: Vec<&str> = again.unwrap().split_ascii_whitespace().collect();
    let once_more = harness(folder.path(), &words, 0);
    assert_eq!(redacted(&told, folder.path()), redacted(&once_more, folder.path()));
}

#[test]
fn environment_error_ends_exploration() {
    let folder = tempfile::tempdir().unwrap();
    // A file, so that no sequence can write evidence there.
    std::fs::create_dir(folder.path().join("evidence")).unwrap();
    std::fs::write(folder.path().join("evidence/explore"), "").unwrap();
    // The printed time contains blanks.
    let args = ["--backend", "mock", "--for", "90m"];
    let told = explore(folder.path(), &args, 3);
    let lines = told.lines().filter(|line| line.starts_with("BROKEN")).count();
    assert_eq!(lines, 1, "{told}");
    let again = told.lines().next().and_then(|line| line.split("again: ").nth(1)).unwrap();
    let words = shlex::split(again).unwrap();
    let parsed = cpr_harness::cli::command().try_get_matches_from(words);
    assert!(parsed.is_ok(), "{again}");
}

#[test]
fn ctrl_c_prints_results_so_far() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = std::process::Command::new(binary());
    command.current_dir(folder.path()).args(["explore", "--backend", "mock", "--for", "1h"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.find(|line| line.starts_with("pass")).unwrap();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(128 + Signal::SIGINT as i32));
    assert!(rest.iter().any(|line| line == "interrupted"), "{rest:?}");
    assert!(rest.iter().any(|line| line.starts_with("good update ")), "{rest:?}");
    assert!(!rest.iter().any(|line| line.starts_with("FAIL")), "{rest:?}");
}

#[test]
fn explore_requires_a_limit() {
    for (args, why) in [
        (&["explore"][..], "--steps <N>"),
        (&["explore", "--for", "soon"], "--for <DURATION>"),
        (&["explore", "--steps", "1", "--seed", "-1"], "-1"),
    ] {
        let done = Command::new(binary()).args(args).assert().code(2);
        let told = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
        assert!(told.contains(why), "{told}");
    }
}
