//! Tests of updates to another build, on the mock.

use std::fs;
use std::path::PathBuf;

use crate::program::harness;
use rstest::rstest;

const SCENARIO: &str = r#"
summary = "updated, well and badly"
steps = [
  "boot",
  { migrate = { times = "${times}" } },
  { migrate = { command = "in-path" } },
  { migrate = { command = "enoent", expect = { failed = {} } } },
  "stop",
]

[matrix]
times = [1, 2]
"#;

/// Creates a folder with a scenario and another build.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("scenarios/theme")).unwrap();
    fs::write(folder.path().join("scenarios/theme/skew.toml"), SCENARIO).unwrap();
    let other = folder.path().join("other-build");
    fs::copy(env!("CARGO_BIN_EXE_cpr-harness"), &other).unwrap();
    (folder, other)
}

/// The checks know which build runs after each update, good or bad; the evidence shows it.
#[rstest]
#[case("there", ["other-build", "other-build"])]
#[case("there-and-back", ["cpr-harness", "other-build"])]
fn updates_go_to_another_build(#[case] course: &str, #[case] last: [&str; 2]) {
    let (folder, other) = folder();
    let args = ["run", "--backend", "mock", "--update-to", other.to_str().unwrap()];
    let (code, told) = harness(folder.path(), &[&args[..], &["--course", course]].concat());
    assert_eq!(code, Some(0), "{told}");
    for (times, last) in [1, 2].into_iter().zip(last) {
        let after = format!("evidence/theme/skew,times={times}/proc-after.txt");
        let after = fs::read_to_string(folder.path().join(after)).unwrap();
        let executable = after.lines().find_map(|line| line.strip_prefix("executable "));
        assert!(executable.unwrap().ends_with(last), "{course}: {after}");
    }
}

#[test]
fn wrong_build_executed_is_detected() {
    let (folder, other) = folder();
    let args = ["run", "--backend", "mock", "--fault", "other-executable", "--filter", "times=1"];
    let args = [&args[..], &["--update-to", other.to_str().unwrap()]].concat();
    let (code, told) = harness(folder.path(), &args);
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains(&format!(", not {}", other.display())), "{told}");
    // The replay uses the same two builds.
    let replay = told.lines().find_map(|line| line.trim().strip_prefix("replay: ")).unwrap();
    assert!(replay.contains(&format!("--update-to {}", other.display())), "{replay}");
    let words: Vec<&str> = replay.split_ascii_whitespace().skip(1).collect();
    let (code, again) = harness(folder.path(), &words);
    assert_eq!(code, Some(1), "{again}");
    assert!(again.contains(&format!(", not {}", other.display())), "{again}");
}

#[test]
fn matrix_reports_identical_builds() {
    let (folder, _) = folder();
    let args = ["matrix", "mock", "mock", "--filter", "times=2", "--json", "matrix.json"];
    let (code, told) = harness(folder.path(), &args);
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.contains("A and B are the same, byte for byte\n1 case from scenarios\n"),
        "{told}"
    );
    for route in ["A → B", "B → A", "A → B → A"] {
        assert!(told.contains(&format!("| {route} | 1 | 0 | 0 | 0 |")), "{told}");
    }
    let json = fs::read_to_string(folder.path().join("matrix.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["builds"][0]["xxh3"], json["builds"][1]["xxh3"]);
    // Two updates each time: there and back.
    assert_eq!(json["routes"][2]["route"]["reports"][0]["updates"], 6, "{json}");
    assert_eq!(json["routes"][0]["counts"]["passed"], 1, "{json}");
}

/// No route runs if an error in another would waste its result.
#[rstest]
#[case(&["mock", "mock", "cpr-vmm"], 2, "the two must be builds of one VMM")]
#[case(&["mock", "mock", "--json", "no/such/folder"], 2, "cannot write no/such/folder")]
fn matrix_with_invalid_options_does_not_start(
    #[case] args: &[&str],
    #[case] expected: i32,
    #[case] why: &str,
) {
    let (folder, _) = folder();
    let args = [&["matrix", "--filter", "times=1"], args].concat();
    let (code, told) = harness(folder.path(), &args);
    assert_eq!(code, Some(expected), "{told}");
    assert!(told.contains(why), "{told}");
    assert!(!folder.path().join("evidence").exists() && !told.contains("passed"), "{told}");
}

#[rstest]
#[case(&["run", "--update-to", "no-such-vmm"], "cannot find the VMM no-such-vmm: No such file")]
#[case(&["run", "--course", "there-and-back"], "--update-to <PATH>")]
#[case(&["matrix", "cpr-vmm"], "2 values required")]
#[case(&["matrix", "cpr-vmm", "mock", "--filter", "theme"], "the two must be builds of one VMM")]
#[case(&["matrix", "mock", "mock", "--shard", "0/2"], "there is no shard 0 of 2")]
fn usage_errors_are_reported(#[case] args: &[&str], #[case] why: &str) {
    let (folder, _) = folder();
    let (code, told) = harness(folder.path(), args);
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains(why), "{told}");
}
