//! Tests with output that cannot be written.

use std::fs::File;
use std::process::Command;

use rstest::rstest;

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn harness(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
    command.args(args);
    command
}

#[rstest]
#[case::list(&["list"])]
#[case::doctor(&["doctor"])]
#[case::guests(&["guests"])]
#[case::schema(&["schema"])]
#[case::completions(&["completions", "bash"])]
#[case::man(&["man"])]
fn full_stdout_sets_exit_status(#[case] args: &[&str]) {
    let done = harness(args).stdout(full()).output().unwrap();
    let told = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(3), "{told}");
    let why = "cpr-harness: cannot write to standard output: No space left on device (os error 28)";
    assert!(told.contains(why), "{told}");
    // Without standard error, too, the exit status is the same.
    let done = harness(args).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(done.code(), Some(3));
}

#[test]
fn failing_run_keeps_exit_status_on_full_stdout() {
    let folder = tempfile::tempdir().unwrap();
    let scenario = "summary = \"an update\"\nsteps = [\"boot\", { migrate = {} }, \"quit\"]\n";
    std::fs::create_dir_all(folder.path().join("scenarios/theme")).unwrap();
    std::fs::write(folder.path().join("scenarios/theme/update.toml"), scenario).unwrap();
    for (fault, code) in [(None, 3), (Some("--fault=guest-panic"), 1)] {
        let mut command = harness(&["run", "--backend", "mock"]);
        command.args(fault).current_dir(folder.path()).stdout(full());
        let done = command.output().unwrap();
        let told = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{told}");
        assert!(told.contains("standard output"), "{told}");
    }
}

/// A reader that stops early, such as `head`, is not an error.
#[test]
fn closed_pipe_is_not_an_error() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    let done = harness(&["list"]).stdout(writer).output().unwrap();
    assert_eq!((done.status.code(), done.stderr.as_slice()), (Some(0), &b""[..]));
}
