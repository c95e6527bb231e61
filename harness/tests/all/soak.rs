//! Tests of `soak` on the mock, through the command line.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rstest::rstest;

fn soak(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
    let common = ["soak", "--backend", "mock", "--seed", "7", "--memory", "16M"];
    command.args(common).args(args).current_dir(folder);
    // `output` reads pipes until every process that inherited them ends: none may be left behind.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Compares the output with a snapshot, after replacing what differs from run to run.
fn check(told: &str, snapshot: &str) {
    insta::with_settings!({filters => vec![
        (r"\d\d:\d\d:\d\d", "[time]"),
        (r"\([\d.]+/s\)", "([rate]/s)"),
        (r"p50 .* ms \(n=\d+\)", "[percentiles]"),
        (r"\d+ -> \d+ KiB", "[memory]"),
        (r"evidence: [\d.]+ MiB", "evidence: [size]"),
        (r"descriptors (\d+) -> \d+", "descriptors $1, as before"),
        (r"\d+ updates(,| \()", "[n] updates$1"),
        (r"update \d+:", "update [n]:"),
        (r"\d+ more were", "[n] more were"),
        (r"(replay|show): \S*cpr-harness", "$1: cpr-harness"),
        (r"KiB at most \d+", "KiB"),
        (r"descriptor \d+", "descriptor [n]"),
        (r"/[^ ]*/evidence", "/evidence"),
    ]}, { insta::assert_snapshot!(snapshot, told) });
}

#[rstest]
#[case("1")]
#[case("2")]
fn soak_ends_after_the_given_number_of_updates(#[case] vms: &str) {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--updates", "12", "--vms", vms, "--interval", "1h"];
    let done = soak(folder.path(), &args).output().unwrap();
    let told = told(&done);
    assert_eq!(done.status.code(), Some(0), "{told}");
    assert!(told.contains("\n12 updates ("), "{told}");
    // With two VMs, one may have run all updates.
    if vms == "1" {
        check(&told, "enough");
    }
}

#[test]
fn soak_ends_after_the_given_time() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--for", "4s", "--vms", "1", "--interval", "500ms"];
    let done = soak(folder.path(), &args).output().unwrap();
    let told = told(&done);
    assert_eq!(done.status.code(), Some(0), "{told}");
    let lines = told.lines().filter(|line| line.contains("; VMs: 1 ")).count();
    assert!(lines >= 3, "one line every interval: {told}");
}

#[test]
fn soak_without_an_update_exits_with_3() {
    let folder = tempfile::tempdir().unwrap();
    let done = soak(folder.path(), &["--for", "1ms", "--vms", "1"]).output().unwrap();
    let told = told(&done);
    assert_eq!(done.status.code(), Some(3), "{told}");
    assert!(told.ends_with("\nno update was done: there is no result\n"), "{told}");
}

#[rstest]
#[case(Signal::SIGINT)]
#[case(Signal::SIGTERM)]
fn signal_ends_soak_with_a_summary(#[case] signal: Signal) {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--vms", "2", "--interval", "50ms"];
    let mut child = soak(folder.path(), &args).spawn().unwrap();
    // The first lines report that the VMs are being updated.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let runs = lines.by_ref().map(Result::unwrap).any(|line| line.contains("VMs: 2 running"));
    assert!(runs, "no VM was updated");
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest:?}");
    assert_eq!(rest.last().map(String::as_str), Some("no damage"), "{rest:?}");
    for vm in ["0-pattern[", "1-timer["] {
        let name = format!("evidence/soak/{vm}").replace('[', ",");
        let evidence = std::fs::read_dir(folder.path().join("evidence/soak")).unwrap();
        let mut folders = evidence.map(|entry| entry.unwrap().path());
        let folder = folders.find(|f| f.to_string_lossy().contains(&name)).unwrap();
        let verdict = std::fs::read_to_string(folder.join("verdict.json")).unwrap();
        assert!(verdict.contains("\"pass\""), "{verdict}");
    }
}

#[test]
fn first_damage_ends_soak_and_can_be_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--vms", "2", "--cpus", "1", "--fault", "leak-fd"];
    let done = soak(folder.path(), &args).output().unwrap();
    let text = told(&done);
    assert_eq!(done.status.code(), Some(1), "{text}");
    assert!(text.contains("fds: "), "{text}");
    let line = |word: &str| text.lines().find(|line| line.contains(word)).map(str::to_owned);
    assert!(line(" show ").is_some_and(|line| !line.contains("--backend")), "{text}");
    let replay = line(" replay ").unwrap();
    let words: Vec<&str> = replay.split_whitespace().skip(1).collect();
    let mut again = Command::new(words[0]);
    let again = again.args(&words[1..]).current_dir(folder.path()).output().unwrap();
    assert_eq!(again.status.code(), Some(1), "{}", told(&again));
    assert!(told(&again).contains("fds: "), "{}", told(&again));
}

#[test]
fn rejects_invalid_options() {
    let folder = tempfile::tempdir().unwrap();
    let mut all = String::new();
    for args in [["--guest", "windows"], ["--interval", "0s"]] {
        let done = soak(folder.path(), &args).output().unwrap();
        assert_eq!(done.status.code(), Some(2));
        all.push_str(&told(&done));
    }
    insta::assert_snapshot!("nonsense", all);
}
