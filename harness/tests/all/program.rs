//! Runs the harness as a program, until it exits.

use std::path::Path;

use assert_cmd::Command;

/// These tests may run on GitHub themselves.
pub fn not_for_github(command: &mut Command) {
    command.env_remove("GITHUB_ACTIONS").env_remove("GITHUB_STEP_SUMMARY");
}

/// Runs the harness in `folder`; returns the exit code and all output.
pub fn harness(folder: &Path, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
    not_for_github(&mut command);
    let done = command.current_dir(folder).args(args).output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    (done.status.code(), told + &String::from_utf8_lossy(&done.stderr))
}
