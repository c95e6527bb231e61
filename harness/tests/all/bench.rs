//! Tests of `bench` and `bench compare` through the command line.

use std::path::Path;
use std::process::Command;

use assert_cmd::assert::OutputAssertExt;

fn harness(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
    command.args(args).current_dir(folder);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn measure(folder: &Path, json: &str) -> String {
    let args = ["bench", "--vmm", "mock", "--vmm", "mock", "--cpus", "1,2", "--runs", "1"];
    let args = [&args[..], &["--updates", "1", "--json", json]].concat();
    let done = harness(folder, &args).assert().code(0);
    assert_eq!(text(&done.get_output().stderr), "", "progress is for terminals");
    text(&done.get_output().stdout)
}

#[test]
fn measures_and_compares_two_vmms() {
    let folder = tempfile::tempdir().unwrap();
    let told = measure(folder.path(), "times.json");
    let head = "| RAM | vCPUs | pages | mock: guest, ms | mock: host, ms | \
        mock: guest, ms | mock: host, ms | mock : mock |\n";
    assert!(told.contains(head), "{told}");
    let json = std::fs::read_to_string(folder.path().join("times.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let measured = &json["measured"];
    assert_eq!(measured.as_array().unwrap().len(), 2, "{json}");
    let cell = serde_json::json!({"memory": "64M", "cpus": 2, "pages": "4k"});
    assert_eq!(measured[1]["cell"], cell);
    for metric in ["guest", "host"] {
        let times = &measured[1]["of"][1]["times_ms"][metric][0];
        assert_eq!(times.as_array().unwrap().len(), 1, "{metric}: {json}");
    }

    let args = ["bench", "compare", "times.json", "times.json"];
    let same = harness(folder.path(), &args).assert().code(0);
    let told = text(&same.get_output().stdout);
    assert!(
        told.contains("| 64M | 1 | 4k | mock | blackout, guest | 1.00 (1.00 to 1.00) |"),
        "{told}"
    );
    assert!(told.contains("0 slower, 0 faster"), "{told}");
}

#[test]
fn comparison_fails_on_slower_times() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, factor: f64| {
        let times: Vec<_> = (0..6).map(|i| vec![factor * (1.0 + f64::from(i) / 50.0)]).collect();
        let of = serde_json::json!([{
            "vmm": "a", "times_ms": { "guest": times }, "phases_ms": {}, "troubles": [],
        }]);
        let cell = serde_json::json!({"memory": "64M", "cpus": 1, "pages": "4k"});
        let measured = serde_json::json!([{"cell": cell, "of": of, "floor": null}]);
        let all = serde_json::json!({
            "format": 1, "harness": "", "kernel": "", "cpus": 2, "measured": measured,
        });
        std::fs::write(folder.path().join(name), all.to_string()).unwrap();
    };
    file("old.json", 1.0);
    file("new.json", 1.5);
    let compare =
        |args: &[&str]| harness(folder.path(), &[&["bench", "compare"], args].concat()).assert();
    compare(&["old.json", "new.json"]).code(1);
    compare(&["new.json", "old.json"]).code(0);
    compare(&["old.json", "new.json", "--threshold", "2"]).code(0);
    let bad = compare(&["old.json", "new.json", "--threshold", "0.5"]).code(2);
    assert!(text(&bad.get_output().stderr).contains("expected a number of at least 1"));
    let missing = compare(&["old.json", "none.json"]).code(2);
    let why = "cpr-harness: cannot read none.json: No such file or directory (os error 2)\n";
    assert_eq!(text(&missing.get_output().stderr), why);
}

#[test]
fn skips_machine_that_exceeds_host_memory() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["bench", "--vmm", "mock", "--memory", "64M,1048576G"];
    let args = [&args[..], &["--runs", "1", "--updates", "1"]].concat();
    let done = harness(folder.path(), &args).assert().code(0);
    let told = text(&done.get_output().stdout);
    assert!(told.contains("| 1048576G | 1 | 4k | skipped | skipped |"), "{told}");
    let told = text(&done.get_output().stderr);
    assert!(
        told.contains(
            "skipped: mock, 1048576G RAM, 1 vCPU, 4k: a guest with 1048576G of RAM needs"
        ),
        "{told}"
    );
}
