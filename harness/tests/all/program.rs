//! The harness as a program that is run to its end.

use std::path::Path;

use assert_cmd::Command;

/// Runs it in `folder`: the exit code, and all that it prints.
pub fn harness(folder: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
    let done = command.current_dir(folder).args(args).output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    (done.status.code(), told + &String::from_utf8_lossy(&done.stderr))
}
