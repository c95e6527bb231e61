//! Tests QEMU's own QMP client, which drives the VMM through updates on one connection.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use support::Scene;
use support::trials::{self, Missing, kvm, trials};

fn main() -> ExitCode {
    trials::run(trials![kvm().or_else(client_missing); stock_client_stays_connected_across_updates])
}

fn python() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ci/.venv/bin/python")
}

fn client_missing() -> Missing {
    let import = Command::new(python()).args(["-c", "import qemu.qmp"]).output();
    let there = import.is_ok_and(|output| output.status.success());
    (!there).then(|| "needs qemu.qmp: run ci/install-qmp-client".to_owned())
}

fn stock_client_stays_connected_across_updates() {
    let scene = Scene::new();
    let mut vm = scene.start("--kernel DIR/heartbeat --memory 16M --paused");
    drop(vm.qmp());

    let output = Command::new(python())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stock_client.py"))
        .args([scene.path("qmp"), scene.path("state")])
        .args(vm.command_again("file:DIR/state"))
        .output()
        .expect("python can be started");
    let transcript = scene.redact(&String::from_utf8_lossy(&output.stdout));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}\n{transcript}\n{}", vm.stderr());

    insta::with_settings!({
        prepend_module_to_snapshot => false,
        filters => vec![
            (r#""seconds": \d+, "microseconds": \d+"#, "[when]"),
            (r#""(total-time|downtime)": \d+"#, r#""$1": [ms]"#),
            (r#""x-downtime-us": \d+"#, r#""x-downtime-us": [us]"#),
        ],
    }, {
        insta::assert_snapshot!("stock_client", transcript);
    });
    // `quit` went to the third program, but it ends the process that was started here.
    assert_eq!(vm.end().code(), Some(0), "{}", vm.stderr());
    assert!(!scene.path("qmp").exists(), "the socket file is left behind: {:?}", scene.files());
}
