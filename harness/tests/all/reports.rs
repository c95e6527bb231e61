//! Tests of reports of runs: records, JUnit, `merge`, `show` and `replay`.

use std::path::Path;

use assert_cmd::Command;

use crate::program::not_for_github;

/// A scenario for two themes, of which a run selects one.
const SCENARIO: &str = r#"
summary = "updated <twice> & \"quoted\""
steps = ["boot", { migrate = { times = "${times}" } }, "quit"]
[matrix]
times = [1, 2]
"#;

/// A case that cannot run on the mock.
const IGNORED: &str = r#"
summary = "rehearsed"
steps = ["boot", { migrate = { command = "true", rehearsal = true, expect = { refused = "no" } } }]
"#;

fn harness(folder: &Path, args: &[&str], code: i32) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
    not_for_github(&mut command);
    let done = command.current_dir(folder).args(args).assert().code(code);
    let output = done.get_output();
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

/// Runs on the mock, one case at a time.
fn run(folder: &Path, args: &[&str], code: i32) -> String {
    harness(folder, &[&["run", "--backend", "mock", "--jobs", "1"], args].concat(), code)
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("one/twice", SCENARIO), ("two/twice", SCENARIO), ("two/no", IGNORED)] {
        let path = folder.path().join(format!("scenarios/{name}.toml"));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

/// Replaces what differs from run to run.
fn stable() -> insta::internals::SettingsBindDropGuard {
    let mut settings = insta::Settings::clone_current();
    for (pattern, name) in [
        (r"\S*/cpr-harness ", "cpr-harness "),
        (r#"time="[\d.]+""#, r#"time="[TIME]""#),
        (
            r#"(name="(?:harness|vmm-file|vmm-xxh3|kernel|cpus?|memory|guest-kernel-mode)" value=)"[^"]+""#,
            r#"$1"[OF THIS RUN]""#,
        ),
        // One for each load of the runs in a suite.
        (r#"\n *<property name="load" [^\n]*"#, ""),
        (r"/\S*/blocked", "[FOLDER]/blocked"),
        (r"descriptor \d+ -", "descriptor [FD] -"),
    ] {
        settings.add_filter(pattern, name);
    }
    settings.bind_to_scope()
}

#[test]
fn junit_has_failures_skips_and_replay_commands() {
    let folder = folder();
    // A file, so that no case can write evidence there.
    std::fs::create_dir(folder.path().join("blocked")).unwrap();
    std::fs::write(folder.path().join("blocked/two"), "").unwrap();
    run(folder.path(), &["--filter", "one/", "--fault", "leak-fd", "--json", "1.json"], 1);
    run(folder.path(), &["--filter", "two/no", "--json", "2.json"], 3);
    let broken = ["--filter", "two/twice", "--evidence", "blocked", "--json", "3.json"];
    run(folder.path(), &broken, 3);
    let merge = ["report", "merge", "1.json", "2.json", "3.json", "--junit", "all.xml"];
    harness(folder.path(), &merge, 1);
    let xml = std::fs::read_to_string(folder.path().join("all.xml")).unwrap();
    let parsed = quick_junit::Report::deserialize_from_str(&xml).unwrap();
    assert_eq!((parsed.tests, parsed.failures, parsed.errors), (5, 2, 2));
    assert!(xml.contains(r#"<property name="load" value=""#), "{xml}");
    let _stable = stable();
    insta::assert_snapshot!(xml);
}

#[test]
fn merged_shards_equal_one_run() {
    let folder = folder();
    let whole = run(folder.path(), &["--json", "whole.json"], 0);
    run(folder.path(), &["--filter", "one/", "--json", "1.json", "--evidence", "e1"], 0);
    run(folder.path(), &["--filter", "two/", "--json", "2.json", "--evidence", "e2"], 0);
    let merged = harness(folder.path(), &["report", "merge", "1.json", "2.json"], 0);
    let summary = |text: &str| {
        let lines = text.lines().skip_while(|line| !line.contains(" ran, "));
        lines.map(|line| line.split(", in ").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(summary(&merged), summary(&whole));
    let all = "4 ran, 4 passed, 0 failed, 1 ignored (1: the mock does not rehearse commands)";
    assert_eq!(summary(&merged)[0], all);
    // The evidence of a replay is not a case of the run.
    harness(folder.path(), &["replay", "e1/one/twice,times=1"], 0);
    // Evidence can replace a record, but does not contain ignored cases.
    let merged = harness(folder.path(), &["report", "merge", "e1", "e2", "--json", "m.json"], 0);
    assert_eq!(summary(&merged)[0], "4 ran, 4 passed, 0 failed, 0 ignored");
    assert!(merged.starts_with("not counted: 1 case in e1/one/replay\n"), "{merged}");
    // A merged record can be merged again.
    let merged = harness(folder.path(), &["report", "merge", "m.json"], 0);
    assert_eq!(summary(&merged)[0], "4 ran, 4 passed, 0 failed, 0 ignored");
    harness(folder.path(), &["report", "merge", "2.json", "--require-all"], 3);
}

#[test]
fn merge_rejects_invalid_input() {
    let folder = folder();
    let path = folder.path();
    run(path, &["--filter", "one/", "--json", "1.json", "--evidence", "e/1"], 0);
    run(path, &["--filter", "two/", "--json", "2.json", "--evidence", "e/2"], 0);
    let text = std::fs::read_to_string(path.join("1.json")).unwrap();
    std::fs::write(path.join("newer.json"), text.replace("\"format\": 1", "\"format\": 9"))
        .unwrap();
    std::fs::write(path.join("cut.json"), "{\n  \"format\": 1,\n").unwrap();
    std::fs::create_dir(path.join("empty")).unwrap();
    let merges: &[&[&str]] = &[
        &["1.json", "2.json", "e/1"],
        &["e/2", "e/2"],
        &["newer.json"],
        &["cut.json"],
        &["no-such.json"],
        &["empty"],
        &["e"],
        &["scenarios/one/twice.toml"],
    ];
    let told = merges.iter().map(|merge| {
        let told = harness(path, &[&["report", "merge"], *merge].concat(), 2);
        format!("{}\n  {told}", merge.join(" "))
    });
    let told: String = told.collect();
    let _stable = stable();
    insta::assert_snapshot!(told);
}

#[test]
fn merge_reports_different_vmms() {
    let folder = folder();
    let path = folder.path();
    run(path, &["--filter", "one/", "--json", "1.json"], 0);
    run(path, &["--filter", "two/", "--json", "2.json"], 0);
    let text = std::fs::read_to_string(path.join("2.json")).unwrap();
    let text = text.replace("\"title\": \"mock\"", "\"title\": \"cpr-vmm 0.0.9\"");
    std::fs::write(path.join("2.json"), text).unwrap();
    let told = harness(path, &["report", "merge", "1.json", "2.json"], 0);
    assert!(
        told.starts_with("different VMMs: cpr-vmm 0.0.9 (3 cases), mock (2 cases)\n"),
        "{told}"
    );
}

#[test]
fn unwritable_report_is_an_error_before_the_run() {
    let folder = folder();
    for option in ["--json", "--junit", "--html"] {
        let told = run(folder.path(), &[option, "nowhere/file"], 2);
        assert_eq!(
            told,
            "cpr-harness: cannot write nowhere/file: No such file or directory (os error 2)\n"
        );
    }
}

/// Creates an evidence folder as a killed harness leaves it, with a guest that prints control
/// characters.
fn evidence(folder: &Path) -> &'static str {
    let path = folder.join("evidence/theme/case");
    std::fs::create_dir_all(&path).unwrap();
    let case = "name = \"theme/case\"\nsummary = \"updated\"\nseed = 7\ntime-limit-ms = 1000\nsteps = [\"boot\", \"quit\"]\n[vm]\n";
    let start = r#"{"case": "theme/case", "seed": 7, "started_unix": 1770091506.5, "harness": "0.1.0", "backend": "mock",
        "vmm": "/vmm", "vmm_version": "1.2", "vmm_option": " --backend mock", "kernel": "6.1.0", "cpus": 2}"#;
    let timeline = r#"{"t":1.5,"source":"harness","text":"start /vmm --kernel guest"}
{"t":1.503,"source":"vmm","text":"2026-02-03T04:05:06.503000Z  INFO vmm: cpr_check"}
{"t":1.502,"source":"qmp-sent","text":"{\"execute\":\"migrate\",\"id\":1,\"arguments\":{\"uri\":\"file:/state\"}}"}
{"t":1.504,"source":"qmp-received","text":"{\"event\":\"STOP\",\"timestamp\":{}}"}
{"t":1.505,"source":"qmp-received","text":"{\"return\": {}, \"id\": 1}"}
{"t":1.506,"source":"serial","text":"\u001b[31mred"}
{"t":1.507,"source":"qmp-rec"#;
    std::fs::write(path.join("case.toml"), case).unwrap();
    std::fs::write(path.join("start.json"), start).unwrap();
    std::fs::write(path.join("timeline.jsonl"), timeline).unwrap();
    let log = "2026-02-03T04:05:06.503000Z  INFO vmm: cpr_check
2026-02-03T04:05:06.504500Z  INFO vmm: cpr_exec\n";
    std::fs::write(path.join("vmm.log"), log).unwrap();
    "evidence/theme/case"
}

#[test]
fn show_works_with_incomplete_evidence() {
    let folder = folder();
    let path = evidence(folder.path());
    let shown = harness(folder.path(), &["show", path], 0);
    let some = harness(folder.path(), &["show", path, "--source", "qmp-received,serial"], 0);
    insta::assert_snapshot!(format!("{shown}\n{some}"));
    let told = harness(folder.path(), &["show", path, "--source", "qmp"], 2);
    assert_eq!(
        told,
        "cpr-harness: unknown source `qmp`: expected harness, qmp-sent, qmp-received, qmp-2-sent, qmp-2-received, vmm, console, serial\n"
    );
    // Any file may be missing.
    std::fs::remove_file(folder.path().join(path).join("vmm.log")).unwrap();
    for file in ["case.toml", "start.json", "timeline.jsonl"] {
        std::fs::remove_file(folder.path().join(path).join(file)).unwrap();
        let code = if file == "timeline.jsonl" { 2 } else { 0 };
        let told = harness(folder.path(), &["show", path], code);
        assert!(told.contains(file) || told.contains("is not an evidence folder"), "{told}");
    }
    // It counts as a case that could not be run.
    evidence(folder.path());
    let told = harness(folder.path(), &["report", "merge", "evidence"], 3);
    assert!(told.contains("0 ran, 0 passed, 0 failed, 0 ignored, 1 could not be run"), "{told}");
    let why =
        "could not be run: theme/case: no verdict in evidence/theme/case: the run was interrupted";
    assert!(told.contains(why), "{told}");
}

#[test]
fn replay_uses_the_same_vmm_and_compares_verdicts() {
    let folder = folder();
    let path = folder.path();
    run(path, &["--filter", "one/twice[times=1]", "--fault", "leak-fd"], 1);
    let evidence = "evidence/one/twice,times=1";
    // By default with the recorded VMM options.
    let told = harness(path, &["replay", evidence, "--evidence", "again"], 1);
    let alike = "same verdict as recorded: fds failed at step 2 (migrate)\n";
    assert!(told.ends_with(alike) && !told.contains(": was "), "{told}");
    // With other VMM options, if given.
    let told = harness(path, &["replay", evidence, "--backend", "mock", "--evidence", "again"], 0);
    let options = "VMM options: was --backend mock --fault leak-fd, is --backend mock\n";
    assert!(told.starts_with(options), "{told}");
    let other = "verdict differs: was fds failed at step 2 (migrate), is passed\n";
    assert!(told.ends_with(other), "{told}");
    let record = |key: &str, value: &str| {
        let file = path.join(evidence).join("start.json");
        let start = std::fs::read_to_string(&file).unwrap();
        let mut start: serde_json::Value = serde_json::from_str(&start).unwrap();
        start[key] = value.into();
        std::fs::write(file, start.to_string()).unwrap();
    };
    // Another build of the same version.
    record("vmm_xxh3", "0123");
    let told = harness(path, &["replay", evidence, "--evidence", "again"], 1);
    let build = told.strip_prefix("VMM build: was xxh3 0123, is xxh3 ");
    assert!(build.is_some_and(|now| now.find('\n') == Some(16)), "{told}");
    for (what, why) in
        [(" --vmm-arg='", "unclosed quote"), (" (with a bug)", "unexpected argument '(with' found")]
    {
        record("vmm_option", what);
        let told = harness(path, &["replay", evidence], 2);
        assert!(told.contains(why) && told.lines().count() == 1, "{told}");
    }
    let told = harness(path, &["replay", "scenarios"], 2);
    assert!(told.contains("scenarios is not an evidence folder: case.toml is missing"), "{told}");
}
