//! Tests that colours and progress are shown on a terminal only.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::pty::openpty;

/// Returns what a run of one case on the mock prints to a terminal.
fn shown(folder: &Path, variables: &[(&str, &str)], code: i32) -> String {
    let terminal = openpty(None, None).unwrap();
    let end = || Stdio::from(terminal.slave.try_clone().unwrap());
    let mut run = Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
    run.current_dir(folder)
        .args(["run", "--backend", "mock"])
        .env_remove("NO_COLOR")
        .env("TERM", "xterm")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(end())
        .stderr(end());
    let mut child = run.spawn().unwrap();
    // The terminal reports its end when no process holds it open any more.
    drop((run, terminal.slave));
    let mut text = Vec::new();
    // The end of the terminal is reported as an error.
    let _ = File::from(terminal.master).read_to_end(&mut text);
    assert_eq!(child.wait().unwrap().code(), Some(code));
    String::from_utf8_lossy(&text).into_owned()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("scenarios/theme")).unwrap();
    let scenario = "summary = \"nothing\"\nsteps = [\"boot\", \"quit\"]\n";
    std::fs::write(folder.path().join("scenarios/theme/nothing.toml"), scenario).unwrap();
    folder
}

const GREEN: &str = "\u{1b}[32mpass";

#[test]
fn terminal_gets_colours_and_progress() {
    let text = shown(folder().path(), &[], 0);
    assert!(text.contains(GREEN) && text.contains(" 0/1 "), "{text:?}");
    assert!(text.contains("longest: theme/nothing 0 s"), "{text:?}");
}

#[test]
fn no_colours_with_no_color() {
    let text = shown(folder().path(), &[("NO_COLOR", "1")], 0);
    assert!(text.contains("pass    theme/nothing") && !text.contains(GREEN), "{text:?}");
}

#[test]
fn scenario_errors_are_coloured_on_a_terminal_only() {
    let folder = folder();
    let file = folder.path().join("scenarios/theme/nothing.toml");
    std::fs::write(file, "summary = \"\"\nsteps = [\"bot\"]\n").unwrap();
    let coloured = shown(folder.path(), &[], 2);
    let plain = shown(folder.path(), &[("NO_COLOR", "1")], 2);
    assert!(coloured.contains('\u{1b}') && coloured.contains("did you mean `boot`?"), "{coloured}");
    assert!(!plain.contains('\u{1b}') && plain.contains("did you mean `boot`?"), "{plain}");
}

#[test]
fn pipe_gets_plain_lines() {
    let folder = folder();
    let mut run = assert_cmd::Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
    let done = run.current_dir(folder.path()).args(["run", "--backend", "mock"]).assert().code(0);
    assert!(!done.get_output().stdout.contains(&0x1b) && done.get_output().stderr.is_empty());
}
