//! Tests of runs that end early, are repeated or continue, on the mock.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cpr_harness::observe::poll::{self, Deadline};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::Value;

use crate::program::harness;

/// Passes with every fault of an update.
const NOTHING: &str = "summary = \"booted\"\nsteps = [\"boot\", \"quit\"]\n";
/// Fails with the fault `leak-fd`, and never ends with `hang`.
const TWICE: &str = "summary = \"updated\"\nsteps = [\"boot\", { migrate = { times = \"${times}\" } }, \"quit\"]\n[matrix]\ntimes = [1, 2]\n";

/// Creates a folder with one case that passes and two that can fail.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("nothing", NOTHING), ("twice", TWICE)] {
        let path = folder.path().join(format!("scenarios/theme/{name}.toml"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    std::fs::create_dir(folder.path().join("tmp")).unwrap();
    folder
}

/// Runs the cases on the mock, one at a time; returns the output.
fn run(folder: &Path, args: &[&str], code: i32) -> String {
    let common = ["run", "--backend", "mock", "--jobs", "1"];
    let (ended, told) = harness(folder, &[&common, args].concat());
    assert_eq!(ended, Some(code), "{args:?}: {told}");
    told
}

fn merge(folder: &Path, what: &str, code: i32) -> String {
    let (ended, told) = harness(folder, &["report", "merge", what]);
    assert_eq!(ended, Some(code), "{told}");
    told
}

fn start(folder: &Path, args: &[&str]) -> Child {
    let one: &[&str] = if args.contains(&"--jobs") { &[] } else { &["--jobs", "1"] };
    Command::new(env!("CARGO_BIN_EXE_cpr-harness"))
        .current_dir(folder)
        .args(["run", "--backend", "mock"])
        .args(one)
        .args(args)
        .env("TMPDIR", folder.join("tmp"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Starts a run whose second case hangs, and returns it when that case runs, with the rest of its
/// output.
fn hanging(folder: &Path, args: &[&str]) -> (Child, impl Iterator<Item = String>) {
    let mut child = start(folder, &[&["--fault", "hang", "--verbose"], args].concat());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("theme/twice[times=1]: step 1 (boot), ")), "no step");
    (child, lines)
}

fn interrupt(child: &Child) {
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
}

fn record(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn has(evidence: &Path, case: &str) -> bool {
    evidence.join("evidence/theme").join(case).exists()
}

#[test]
fn failures_are_grouped_by_reason() {
    let folder = folder();
    let told = run(folder.path(), &["--fault", "leak-fd"], 1);
    let summary = told.split("\nfailed:\n").nth(1).unwrap();
    assert!(summary.starts_with("  2 x fds: "), "{told}");
    assert!(summary.contains("\n    first: theme/twice[times=1] at step 2 (migrate)\n"), "{told}");
    for command in ["replay: ", "show: "] {
        assert_eq!(told.matches(command).count(), 1, "{told}");
    }
}

#[test]
fn interrupted_run_writes_reports_and_can_be_continued() {
    let folder = folder();
    let path = folder.path();
    let (mut child, rest) = hanging(path, &["--json", "1.json", "--junit", "1.xml"]);
    interrupt(&child);
    let rest: Vec<String> = rest.collect();
    assert_eq!(child.wait().unwrap().code(), Some(128 + Signal::SIGINT as i32), "{rest:?}");
    let line = "interrupted by SIGINT: 1 of 3 cases ran, 1 stopped, 1 case was not begun";
    assert!(rest.iter().any(|told| told == line), "{rest:?}");
    let is_command =
        |line: &String| line.starts_with("continue: ") && line.contains(" run --continue ");
    assert!(rest.iter().any(is_command), "{rest:?}");
    assert_eq!(std::fs::read_dir(path.join("tmp")).unwrap().count(), 0);
    let written = record(&path.join("1.json"));
    assert_eq!(written["cases"].as_array().unwrap().len(), 1, "{written}");
    assert_eq!(written["not_run"].as_array().unwrap().len(), 2, "{written}");
    let xml = std::fs::read_to_string(path.join("1.xml")).unwrap();
    assert_eq!(xml.matches("not run: the run ended before").count(), 2, "{xml}");
    assert!(merge(path, "1.json", 3).contains("1 ran, 1 passed, 0 failed, 0 ignored, 2 not run"));
    let told = merge(path, "evidence", 3);
    assert!(told.contains(", 1 could not be run, 1 not run, in "), "{told}");
    let told = run(path, &["--continue", "--json", "2.json"], 0);
    assert!(told.contains("2 ran, 2 passed"), "{told}");
    assert!(merge(path, "evidence", 0).contains("3 ran, 3 passed, 0 failed, 0 ignored, in "));
    let (code, told) = harness(path, &["report", "merge", "1.json", "2.json"]);
    assert!(told.contains("3 ran, 3 passed, 0 failed, 0 ignored, in "), "{code:?}: {told}");
    let told = run(path, &["--continue"], 2);
    assert!(told.contains("every case ended in the last run with evidence in evidence"), "{told}");
}

#[test]
fn cases_that_a_signal_stops_leave_no_verdict() {
    let folder = folder();
    let args = ["--fault", "hang", "--filter", "twice", "--repeat", "8", "--jobs", "16"];
    let mut child = start(folder.path(), &[&args[..], &["--verbose"]].concat());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let booted = lines.by_ref().filter(|line| line.contains("step 1 (boot), ")).take(16).count();
    assert_eq!(booted, 16);
    interrupt(&child);
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(128 + Signal::SIGINT as i32));
    let cases = std::fs::read_dir(folder.path().join("evidence/theme")).unwrap();
    let folders: Vec<_> = cases.map(|case| case.unwrap().path()).collect();
    assert_eq!(folders.len(), 16);
    let judged: Vec<_> = folders.iter().filter(|case| case.join("verdict.json").exists()).collect();
    assert!(judged.is_empty(), "{judged:?}");
    let told = merge(folder.path(), "evidence", 3);
    assert!(told.contains(" 0 failed, "), "{told}");
}

#[test]
fn signals_that_come_with_the_first_do_not_prevent_reports() {
    let folder = folder();
    // Its reader lets the record be written only later.
    let fifo = folder.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let reader = std::fs::File::options().read(true).write(true).open(&fifo).unwrap();
    let (mut child, mut rest) = hanging(folder.path(), &["--json", "fifo", "--junit", "all.xml"]);
    drop(reader);
    interrupt(&child);
    assert!(rest.any(|line| line.starts_with("merge the results: ")));
    interrupt(&child);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGPIPE).unwrap();
    let limit = Deadline::after(Duration::from_millis(300));
    assert_eq!(poll::until(limit, || child.try_wait().unwrap()), None);
    let text = std::fs::read_to_string(&fifo).unwrap();
    assert!(text.contains("\"not_run\""), "{text}");
    assert_eq!(child.wait().unwrap().code(), Some(128 + Signal::SIGINT as i32));
    assert!(folder.path().join("all.xml").exists());
}

#[test]
fn repeated_case_can_be_replayed() {
    let folder = folder();
    run(folder.path(), &["--repeat", "2", "--filter", "nothing"], 0);
    let (code, told) = harness(folder.path(), &["replay", "evidence/theme/nothing@2"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("same verdict as recorded: passed"), "{told}");
}

#[test]
fn reports_are_written_even_if_the_state_of_the_run_cannot_be() {
    let folder = folder();
    let args = ["--repeat", "40", "--filter", "nothing", "--json", "all.json"];
    let mut child = start(folder.path(), &args);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("pass ")));
    // The state cannot be written to a folder. It is just being written, perhaps.
    let new = folder.path().join("evidence/last-run.json.new");
    let limit = Deadline::after(Duration::from_secs(20));
    poll::until(limit, || std::fs::create_dir(&new).ok()).expect("cannot create the folder");
    lines.for_each(drop);
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let cases = record(&folder.path().join("all.json"))["cases"].as_array().unwrap().len();
    assert_eq!(cases, 40);
}

#[test]
fn second_signal_ends_a_run_that_cannot_write_its_reports() {
    let folder = folder();
    // It will have no reader, so opening it blocks.
    let fifo = folder.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let reader = std::fs::File::options().read(true).write(true).open(&fifo).unwrap();
    let (mut child, mut rest) = hanging(folder.path(), &["--json", "fifo"]);
    drop(reader);
    interrupt(&child);
    assert!(rest.any(|line| line.starts_with("merge the results: ")));
    // One that comes with the first is ignored.
    let ended = poll::until(Deadline::after(Duration::from_secs(20)), || {
        interrupt(&child);
        child.try_wait().unwrap()
    });
    assert_eq!(ended.expect("no end").code(), Some(128 + Signal::SIGINT as i32));
    assert_eq!(std::fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn closed_stdout_ends_the_run_with_its_reports() {
    let folder = folder();
    let mut child = start(folder.path(), &["--repeat", "1000", "--json", "all.json"]);
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "3 cases from scenarios\n");
    assert_eq!(child.wait().unwrap().code(), Some(128 + Signal::SIGPIPE as i32));
    assert_eq!(std::fs::read_dir(folder.path().join("tmp")).unwrap().count(), 0);
    let cases = record(&folder.path().join("all.json"))["cases"].as_array().unwrap().len();
    assert!((1..3000).contains(&cases), "{cases}");
}

#[test]
fn reports_of_a_fail_fast_run_say_what_was_not_begun() {
    let folder = folder();
    let args = ["--fault", "leak-fd", "--fail-fast", "--json", "all.json", "--html", "all.html"];
    let told = run(folder.path(), &args, 1);
    assert!(told.contains("\n1 case was not begun (--fail-fast)\n"), "{told}");
    for what in ["all.json", "evidence"] {
        let told = merge(folder.path(), what, 1);
        assert!(told.contains("2 ran, 1 passed, 1 failed, 0 ignored, 1 not run, in "), "{told}");
    }
    let page = std::fs::read_to_string(folder.path().join("all.html")).unwrap();
    assert!(page.contains("<dt>not run</dt>"), "{page}");
}

#[test]
fn evidence_of_an_earlier_run_does_not_stand_for_a_case_that_was_not_begun() {
    let folder = folder();
    run(folder.path(), &[], 0);
    run(folder.path(), &["--fault", "leak-fd", "--fail-fast"], 1);
    let told = merge(folder.path(), "evidence", 1);
    assert!(told.contains("2 ran, 1 passed, 1 failed, 0 ignored, 1 not run, in "), "{told}");
}

/// A run that failed passes once its difference is listed, from its record and from its evidence.
#[test]
fn merged_runs_are_judged_by_the_list_of_the_command_line() {
    let folder = folder();
    run(folder.path(), &["--fault", "leak-fd", "--json", "all.json"], 1);
    let list = r#"[[difference]]
name = "leaks"
vmm = "mock"
kind = "verdict"
cases = ["theme/"]
anywhere = true
findings = { fds = "descriptor \\d+ -> /dev/null is new" }
reason = "it leaks a descriptor"
"#;
    std::fs::write(folder.path().join("list.toml"), list).unwrap();
    for what in ["all.json", "evidence"] {
        merge(folder.path(), what, 1);
        let args = ["report", "merge", what, "--differences", "list.toml"];
        let (ended, told) = harness(folder.path(), &args);
        assert_eq!(ended, Some(0), "{told}");
        assert!(told.contains("2 with known differences (2: leaks)"), "{told}");
    }
}

#[test]
fn failed_cases_are_run_again() {
    let folder = folder();
    let told = run(folder.path(), &["--rerun-failed"], 2);
    assert!(told.contains("there was no run with evidence in evidence"), "{told}");
    let told = run(folder.path(), &["--fault", "leak-fd"], 1);
    assert!(told.contains("\nrun what failed again: ") && told.contains(" run --rerun-failed "));
    let told = run(folder.path(), &["--rerun-failed", "--filter", "times=1"], 0);
    assert!(told.contains("1 ran, 1 passed"), "{told}");
    // What was not selected has still failed.
    let told = run(folder.path(), &["--rerun-failed"], 0);
    assert!(told.contains("pass    theme/twice[times=2]") && told.contains("1 ran, 1 passed"));
    let told = run(folder.path(), &["--rerun-failed"], 2);
    assert!(told.contains("no case failed in the last run with evidence in evidence"), "{told}");
}

#[test]
fn repeats_leave_evidence_side_by_side() {
    let folder = folder();
    let args = ["--repeat", "3", "--filter", "nothing", "--json", "all.json"];
    let told = run(folder.path(), &args, 0);
    assert!(told.contains("3 ran, 3 passed"), "{told}");
    let merged = merge(folder.path(), "all.json", 0);
    assert!(merged.contains("3 ran, 3 passed"), "{merged}");
    assert!(["nothing", "nothing@2", "nothing@3"].iter().all(|case| has(folder.path(), case)));
    // Those of an earlier run are gone.
    run(folder.path(), &["--repeat", "2", "--filter", "nothing"], 0);
    assert!(has(folder.path(), "nothing@2") && !has(folder.path(), "nothing@3"));
}

#[test]
fn repeats_end_with_the_first_failure() {
    let folder = folder();
    let only = ["--until-fail", "--filter", "times=1"];
    let told = run(folder.path(), &[&only[..], &["--repeat", "3"]].concat(), 0);
    assert!(told.contains("3 ran, 3 passed"), "{told}");
    assert!(has(folder.path(), "twice,times=1") && !has(folder.path(), "twice,times=1@2"));
    let told = run(folder.path(), &[&only[..], &["--fault", "leak-fd"]].concat(), 1);
    assert!(told.contains("1 ran, 0 passed, 1 failed"), "{told}");
    assert!(told.contains("\n999 cases were not begun (--until-fail)\n"), "{told}");
    let told = run(folder.path(), &["--until-fail", "--filter", "twice", "--fault", "leak-fd"], 1);
    assert!(told.contains("\nrun what failed again: ") && !told.contains("continue: "), "{told}");
}

#[test]
fn repeats_end_if_no_case_can_run() {
    let folder = folder();
    let step =
        "{ migrate = { command = \"true\", rehearsal = true, expect = { refused = \"no\" } } }";
    let text = format!("summary = \"rehearsed\"\nsteps = [\"boot\", {step}]\n");
    std::fs::write(folder.path().join("scenarios/theme/no.toml"), text).unwrap();
    let told = run(folder.path(), &["--repeat", "9", "--filter", "/no"], 0);
    assert!(told.contains("9 passed, 0 failed, 9 ignored"), "{told}");
    let told = run(folder.path(), &["--repeat", "9", "--exact", "theme/no"], 3);
    assert!(told.contains("\n8 cases were not begun (all were ignored)\n"), "{told}");
}

#[test]
fn cases_that_no_longer_exist_are_not_run_again() {
    let folder = folder();
    run(folder.path(), &["--fault", "leak-fd"], 1);
    let scenario = folder.path().join("scenarios/theme/twice.toml");
    std::fs::write(&scenario, TWICE.replace("[1, 2]", "[2, 3]")).unwrap();
    let again = ["--rerun-failed", "--fault", "leak-fd"];
    let told = run(folder.path(), &again, 1);
    let line = "1 case of the last run no longer exists: theme/twice[times=1]\n";
    assert!(told.contains(line) && told.contains("1 ran, 0 passed, 1 failed"), "{told}");
    std::fs::remove_file(&scenario).unwrap();
    let told = run(folder.path(), &again, 2);
    let why = "no such case of the last run is left in scenarios: theme/twice[times=2]\n";
    assert!(told.contains(why), "{told}");
    std::fs::write(folder.path().join("evidence/last-run.json"), "").unwrap();
    let told = run(folder.path(), &again, 2);
    let why = "cannot read evidence/last-run.json: EOF while parsing";
    assert!(told.contains(why) && told.contains("; omit --rerun-failed to run all"), "{told}");
}

#[test]
fn command_that_continues_is_accepted() {
    let folder = folder();
    let exact = ["--exact", "theme/twice[times=1]", "--fault", "leak-fd"];
    let told = run(folder.path(), &[&exact[..], &["--", "scenarios"]].concat(), 1);
    let command = told.lines().find_map(|line| line.strip_prefix("run what failed again: "));
    let again = assert_cmd::Command::new("sh")
        .current_dir(folder.path())
        .args(["-c", command.unwrap()])
        .assert();
    let again = again.code(1);
    let told = String::from_utf8_lossy(&again.get_output().stdout);
    assert!(told.contains("1 ran, 0 passed, 1 failed"), "{told}");
}

#[test]
fn verbose_run_prints_each_step() {
    let folder = folder();
    let told = run(folder.path(), &["--verbose", "--filter", "times=1", "--fault", "leak-fd"], 1);
    let steps = ["step 1 (boot), ", "step 2 (migrate), "].map(|step| told.find(step).unwrap());
    assert!(steps.is_sorted() && !told.contains("(quit)"), "{told}");
    let failed = told.lines().find(|line| line.contains("step 2 (migrate), ")).unwrap();
    assert!(failed.starts_with("        theme/twice[times=1]: ") && failed.ends_with(" s, failed"));
}

#[test]
fn github_gets_annotations_and_a_table() {
    let folder = folder();
    let run = |variables: &[(&str, &str)]| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
        crate::program::not_for_github(&mut command);
        let args = ["run", "--backend", "mock", "--fault", "leak-fd"];
        command.current_dir(folder.path()).args(args).envs(variables.iter().copied());
        String::from_utf8(command.assert().code(1).get_output().stdout.clone()).unwrap()
    };
    assert!(!run(&[]).contains("::error"));
    // A summary that cannot be written does not hide the failure.
    run(&[("GITHUB_STEP_SUMMARY", "nowhere/summary.md")]);
    let workspace = folder.path().to_str().unwrap();
    let summary = folder.path().join("summary.md");
    let told = run(&[
        ("GITHUB_ACTIONS", "true"),
        ("GITHUB_WORKSPACE", workspace),
        ("GITHUB_STEP_SUMMARY", summary.to_str().unwrap()),
    ]);
    let place = "::error file=scenarios/theme/twice.toml,line=2,title=theme/twice[times=";
    assert_eq!(told.matches(place).count(), 1, "{told}");
    let table = std::fs::read_to_string(summary).unwrap();
    assert!(table.contains("| passed | 1 |\n| failed | 2 |\n"), "{table}");
    assert!(table.contains("\n| 2 | fds: "), "{table}");
}
