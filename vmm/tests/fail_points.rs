//! Tests that the shipped binary has no fail points.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Strings in a binary with fail points.
const TRACES: [&str; 8] = [
    "query-failpoints",
    "x-set-failpoint",
    "x-inject",
    "x-audit",
    "CPR_AUDIT",
    "test.irqfd",
    "fail point",
    "x-state-version",
];

fn traces(binary: &Path) -> Vec<&'static str> {
    let content = std::fs::read(binary).unwrap_or_else(|error| panic!("{binary:?}: {error}"));
    let has = |text: &str| content.windows(text.len()).any(|window| window == text.as_bytes());
    TRACES.into_iter().filter(|text| has(text)).collect()
}

/// Builds this package alone with `cargo build --release`, and returns the binary.
fn shipped() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--release", "--locked", "-p", "cpr-vmm"]);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    let status = build.status().expect("cargo exists: it has built this test");
    assert!(status.success(), "{build:?}: {status}");
    let tested = Path::new(env!("CARGO_BIN_EXE_cpr-vmm"));
    let profiles = tested.ancestors().nth(2).expect("the binary is in the folder of a profile");
    profiles.join("release/cpr-vmm")
}

#[test]
fn shipped_binary_has_no_fail_points() {
    assert_eq!(traces(Path::new(env!("CARGO_BIN_EXE_cpr-vmm"))), TRACES);
    let shipped = shipped();
    assert_eq!(traces(&shipped), [""; 0]);
    let output = Command::new(&shipped).args(["--failpoint", "save=off"]).output();
    let output = output.expect("the binary can be executed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("unexpected argument '--failpoint'"), "{said}");
}
