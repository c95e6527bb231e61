//! Tests of `scenarios/ERRORS.md`: how it is generated, and that every failure has a row.

use std::path::Path;

use assert_cmd::Command;
use cpr_harness::report::errors::{Row, as_written, is_about, rows_of};
use cpr_harness::scenario::Case;
use cpr_harness::scenario::set::Set;

/// Two refused updates: the error of one differs between cases, that of the other does not.
const SCENARIO: &str = r#"
summary = "refused"
steps = [
  "boot",
  { migrate = { channel = "${channel}", expect = { refused = "file:" } } },
  { migrate = { command = "empty-word", expect = { refused = "empty" } } },
  "quit",
]
[matrix]
channel = ["tcp", "exec"]
"#;

/// A case that cannot run on the mock.
const IGNORED: &str = r#"
summary = "rehearsed"
steps = ["boot", { migrate = { command = "true", rehearsal = true, expect = { refused = "no" } } }]
"#;

fn run(folder: &Path, args: &[&str], code: i32) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
    command.current_dir(folder).args(["run", "--backend", "mock"]).args(args);
    let done = command.assert().code(code);
    let output = done.get_output();
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let theme = folder.path().join("scenarios/theme");
    std::fs::create_dir_all(&theme).unwrap();
    std::fs::write(theme.join("refused.toml"), SCENARIO).unwrap();
    std::fs::write(theme.join("ignored.toml"), IGNORED).unwrap();
    folder
}

#[test]
fn error_table_is_written_and_compared() {
    let folder = folder();
    let file = folder.path().join("ERRORS.md");
    let known = "| theme/ignored | command true | refused | `` known from elsewhere `` |";
    std::fs::write(&file, format!("{known}\n")).unwrap();
    run(folder.path(), &["--errors", "ERRORS.md"], 0);
    let text = std::fs::read_to_string(&file).unwrap();
    let rows: Vec<String> = rows_of(&text).map(|row| row.to_string()).collect();
    insta::assert_snapshot!("table", rows.join("\n"));
    run(folder.path(), &["--check-errors", "ERRORS.md"], 0);
    std::fs::write(&file, text.replace("first word is", "first word was")).unwrap();
    let told = run(folder.path(), &["--check-errors", "ERRORS.md"], 1);
    let differing: Vec<&str> = told.lines().filter(|line| line.starts_with(['-', '+'])).collect();
    insta::assert_snapshot!("differing", differing.join("\n"));
}

#[test]
fn error_table_requires_a_complete_passing_run() {
    let folder = folder();
    for args in [["--filter", "tcp"], ["scenarios", "--require-all"]] {
        let told = run(folder.path(), &[&["--errors", "ERRORS.md"], &args[..]].concat(), 2);
        assert!(told.contains("--errors requires a run of all cases"), "{told}");
    }
    let told = run(folder.path(), &["--check-errors", "ERRORS.md"], 2);
    assert!(told.contains("cannot read ERRORS.md: No such file"), "{told}");
    let told = run(folder.path(), &["--errors", "ERRORS.md", "--fault", "keep-socket"], 1);
    assert!(told.contains("skipped ERRORS.md"), "{told}");
    assert!(!folder.path().join("ERRORS.md").exists());
}

#[test]
fn failures_and_table_rows_match() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/ERRORS.md");
    let text = std::fs::read_to_string(file).unwrap();
    let written = as_written(&text);
    let differing = similar::TextDiff::from_lines(&text, &written).unified_diff().to_string();
    assert!(differing.is_empty(), "not as a run writes it:\n{differing}");
    let rows: Vec<Row> = rows_of(&text).collect();
    let cases = Set::embedded().unwrap().cases;
    let cases: Vec<&Case> = cases.iter().filter(|case| !case.on_request).collect();
    let of = |row: &Row, case: &Case| {
        case.failures().contains(&row.what) && is_about(&row.scenario, case)
    };
    let stale: Vec<&Row> =
        rows.iter().filter(|row| !cases.iter().any(|case| of(row, case))).collect();
    let has_row = |case: &Case, what: &String| {
        rows.iter().any(|row| row.what == *what && is_about(&row.scenario, case))
    };
    let missing: Vec<(&str, String)> = cases
        .iter()
        .flat_map(|case| case.failures().into_iter().map(|what| (*case, what)))
        .filter(|(case, what)| !has_row(case, what))
        .map(|(case, what)| (case.name.as_str(), what))
        .collect();
    let told = "cargo run --release -- run --errors scenarios/ERRORS.md";
    assert!(stale.is_empty() && missing.is_empty(), "{told}: stale {stale:?}, missing {missing:?}");
}
