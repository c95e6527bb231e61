//! Tests of what a new user meets first: `doctor`, `new`, `schema`, completions, manual pages.

use std::path::Path;

use assert_cmd::Command;
use rstest::rstest;

fn harness(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
    command.current_dir(folder).args(args);
    command
}

fn told(folder: &Path, args: &[&str]) -> String {
    let done = harness(folder, args).assert().code(0);
    String::from_utf8_lossy(&done.get_output().stdout).into_owned()
}

#[rstest]
fn long_version_has_the_revision(#[values(&["--version"], &["vmm", "--version"])] args: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let told = told(folder.path(), args);
    let git = std::process::Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "--short=12", "HEAD"])
        .output();
    // An unpacked archive has no revision.
    let head = git.ok().filter(|git| git.status.success());
    let head = head.map_or("unknown".into(), |git| String::from_utf8(git.stdout).unwrap());
    let (_, revision) = told.trim_end().split_once(" 0.1.0 (").unwrap();
    let revision = revision.trim_end_matches(')').trim_end_matches(", modified");
    assert_eq!(revision, head.trim(), "{told}");
}

#[test]
fn new_scenario_runs_and_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let text = told(folder.path(), &["new", "theme/mine"]);
    assert_eq!(text, "scenarios/theme/mine.toml\nrun it: cpr-harness run --filter theme/mine\n");
    let file = folder.path().join("scenarios/theme/mine.toml");
    let written = std::fs::read_to_string(&file).unwrap();
    let schema = written.lines().next().unwrap().strip_prefix("#:schema ").unwrap();
    let schema = std::fs::read_to_string(file.parent().unwrap().join(schema)).unwrap();
    assert_eq!(schema, told(folder.path(), &["schema"]));
    let ran = told(folder.path(), &["run", "--backend", "mock", "--filter", "theme/mine"]);
    assert!(ran.contains("2 ran, 2 passed, 0 failed, 0 ignored"), "{ran}");
    std::fs::write(&file, "mine").unwrap();
    let again = harness(folder.path(), &["new", "theme/mine"]).assert().code(2);
    again
        .stderr("cpr-harness: cannot write scenarios/theme/mine.toml: File exists (os error 17)\n");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
}

#[rstest]
fn rejects_scenario_name_outside_the_folder(
    #[values("mine", "../etc/x", "/x", "a/b/c", "a/B")] name: &str,
) {
    let folder = tempfile::tempdir().unwrap();
    let done = harness(folder.path(), &["new", name]).assert().code(2);
    let told = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    assert!(told.contains("expected theme/name in lower-case letters"), "{told}");
}

#[test]
fn schema_accepts_the_new_scenario() {
    let folder = tempfile::tempdir().unwrap();
    let schema: serde_json::Value =
        serde_json::from_str(&told(folder.path(), &["schema"])).unwrap();
    told(folder.path(), &["new", "theme/mine"]);
    let text = std::fs::read_to_string(folder.path().join("scenarios/theme/mine.toml")).unwrap();
    let scenario = serde_json::to_value(toml::from_str::<toml::Value>(&text).unwrap()).unwrap();
    assert_eq!(jsonschema::validate(&schema, &scenario).map_err(|e| e.to_string()), Ok(()));
}

#[test]
fn every_command_has_a_manual_page() {
    let folder = tempfile::tempdir().unwrap();
    assert!(told(folder.path(), &["man"]).starts_with(".ie"), "no page");
    told(folder.path(), &["man", "--dir", "pages"]);
    for command in cpr_harness::cli::command().get_subcommands() {
        let page = folder.path().join(format!("pages/cpr-harness-{}.1", command.get_name()));
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(text.contains(".SH NAME"), "{}", page.display());
    }
}

#[rstest]
fn prints_shell_completions(#[values("bash", "zsh", "fish", "elvish")] shell: &str) {
    let folder = tempfile::tempdir().unwrap();
    let script = told(folder.path(), &["completions", shell]);
    assert!(script.contains("require-all") && script.contains("doctor"), "{script}");
}

#[test]
fn doctor_reports_what_is_missing_and_how_to_fix_it() {
    let folder = tempfile::tempdir().unwrap();
    // An unusable TMPDIR, so that something is missing on every host.
    let done = harness(folder.path(), &["doctor"]).env("TMPDIR", "/proc/nowhere").assert().code(3);
    let told = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
    let line = told.lines().position(|line| line.starts_with("MISSING  temporary files"));
    let advice = told.lines().nth(line.unwrap() + 1).unwrap();
    assert!(advice.contains("set TMPDIR"), "{told}");
    for topic in ["KVM", "vCPUs", "RAM", "user", "QEMU", "load"] {
        assert!(told.contains(&format!("  {topic} ")), "{topic}: {told}");
    }
    assert!(
        told.contains("\n0 of ") && told.contains(" cases of embedded scenarios can run here\n"),
        "{told}"
    );
}
