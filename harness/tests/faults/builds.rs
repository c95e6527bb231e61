//! Tests of updates from one build of the real VMM to another.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use assert_cmd::Command;
use libtest_mimic::Trial;

use crate::common;

/// The tests of this module.
pub fn trials() -> Vec<Trial> {
    let tests: [(&str, fn()); 2] =
        [("another_build_takes_over", takes_over), ("another_format_is_refused", is_refused)];
    let trial = |(name, test)| common::trial(name, common::kvm_missing(), test);
    tests.map(trial).into()
}

/// Runs `matrix` on the carried VMM and the file at `build`.
fn matrix(folder: &Path, build: &Path, more: &[&str]) -> (Option<i32>, String) {
    let filters = ["--filter", "update/running[cpus=1,pages=4k]"];
    let mut command = Command::new(common::binary());
    command.current_dir(folder).args(["matrix", "cpr-vmm"]).arg(build).args(filters).args(more);
    let done = command.output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    (done.status.code(), told + &String::from_utf8_lossy(&done.stderr))
}

/// A harness carries its VMM, so a copy of it is a build at another path.
fn takes_over() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("other-harness");
    fs::copy(common::binary(), &copy).unwrap();
    let (code, told) = matrix(folder.path(), &copy, &[]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("A and B are the same, byte for byte\n"), "{told}");
    for route in ["A → B", "B → A", "A → B → A"] {
        assert!(told.contains(&format!("| {route} | 1 | 0 | 0 | 0 |")), "{told}");
    }
    let after = "evidence/matrix/A-B-A/update/running,cpus=1,pages=4k/proc-after.txt";
    let after = fs::read_to_string(folder.path().join(after)).unwrap();
    assert!(!after.contains("other-harness"), "it is back: {after}");
}

/// A wrapper makes the VMM use another version of the saved state.
fn is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("newer");
    let binary = common::binary().display();
    let text = format!("#!/bin/sh\nexec {binary} vmm --x-state-version 99 \"$@\"\n");
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let (code, told) = matrix(folder.path(), &script, &[]);
    assert_eq!(code, Some(0), "{told}");
    for route in ["A → B", "B → A", "A → B → A"] {
        assert!(told.contains(&format!("| {route} | refused | | | |")), "{told}");
    }
    let refused = "refused, and the guest keeps running";
    let why = "cpr-exec-command reads saved state version 99, this VM writes versions 1 to 2";
    assert!(told.contains(&format!("\nA → B: {refused}: {why}\n")), "{told}");
    assert!(told.contains(&format!("\nA → B → A: {refused}: A → B: {why}\n")), "{told}");
    let must = matrix(folder.path(), &script, &["--must-update"]);
    assert_eq!(must.0, Some(1), "{}", must.1);
}
