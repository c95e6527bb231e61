//! Runs of the VMM that it must refuse: error text, exit status, and that it leaves nothing behind.

use std::fmt::Write;
use std::process::Command;

use super::{PATIENCE, Scene};

/// Runs the VMM, which must refuse to start, and returns its status and output under `title`.
pub fn refusal(
    scene: &Scene,
    title: &str,
    arguments: &str,
    change: impl FnOnce(&mut Command),
) -> String {
    let before = scene.files();
    let paths = ["--qmp unix:DIR/qmp", "--pid-file DIR/pid"];
    let own = |path: &&str| !arguments.contains(path.split(' ').next().unwrap_or_default());
    let paths: Vec<_> = paths.into_iter().filter(own).collect();
    let mut command = scene.command(&format!("{} {arguments}", paths.join(" ")));
    change(&mut command);
    let output = assert_cmd::Command::from_std(command).timeout(PATIENCE).output();
    let output = output.expect("the VMM can be started");
    let stderr = scene.redact(&String::from_utf8_lossy(&output.stderr));
    let status = match output.status.code() {
        Some(status @ 1) => {
            assert_eq!(stderr.lines().count(), 1, "{title}: {stderr}");
            status
        }
        Some(status @ 2) => {
            assert!(stderr.starts_with("error: "), "{title}: {stderr}");
            status
        }
        _ => panic!("{title}: {}: {stderr}", output.status),
    };
    assert_eq!(output.stdout, b"", "{title}: stdout");
    assert_eq!(scene.files(), before, "{title}: something is left behind");
    let mut paragraph = format!("{title}\n  {status}\n");
    for line in stderr.lines().filter(|line| !line.trim().is_empty()) {
        writeln!(paragraph, "  {}", line.trim()).expect("strings can be written to");
    }
    paragraph
}

/// Compares the refusals with the snapshot `name`.
pub fn snapshot(name: &str, rows: &[String]) {
    insta::with_settings!({ snapshot_path => "../snapshots", prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(name, rows.join("\n"));
    });
}
