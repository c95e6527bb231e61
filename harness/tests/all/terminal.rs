//! Colours and progress: on a terminal, and nowhere else.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::pty::openpty;

/// What a run of one case that passes, on the mock, shows on a terminal.
fn shown(folder: &Path, variables: &[(&str, &str)]) -> String {
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
    // The end of a terminal comes when nobody holds it any more.
    drop((run, terminal.slave));
    let mut text = Vec::new();
    // It is told as an error.
    let _ = File::from(terminal.master).read_to_end(&mut text);
    assert_eq!(child.wait().unwrap().code(), Some(0));
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
fn a_terminal_gets_colours_and_progress() {
    let text = shown(folder().path(), &[]);
    assert!(text.contains(GREEN) && text.contains(" 0/1 "), "{text:?}");
}

#[test]
fn without_colours_where_nobody_wants_them() {
    let text = shown(folder().path(), &[("NO_COLOR", "1")]);
    assert!(text.contains("pass    theme/nothing") && !text.contains(GREEN), "{text:?}");
}

#[test]
fn a_pipe_gets_plain_lines() {
    let folder = folder();
    let mut run = assert_cmd::Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
    let done = run.current_dir(folder.path()).args(["run", "--backend", "mock"]).assert().code(0);
    assert!(!done.get_output().stdout.contains(&0x1b) && done.get_output().stderr.is_empty());
}
