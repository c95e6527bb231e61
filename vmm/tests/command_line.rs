//! Tests which command lines the binary refuses: error text, exit status, and that it leaves nothing
//! behind.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use cpr_qmp::run_state::RunState;
use support::trials::{self, Missing, kvm, trial, trials};
use support::{Scene, refusal, snapshot};

fn main() -> ExitCode {
    let mut tests = trials![None; bad_command_lines];
    tests.extend(trials![kvm();
        bad_command_lines_of_a_machine,
        a_socket_that_is_taken,
        a_file_where_the_socket_should_be,
        a_socket_left_behind_is_replaced,
    ]);
    tests.push(trial("huge_pages_that_are_not_there", huge_pages(), huge_pages_that_are_not_there));
    trials::run(tests)
}

fn refusals(name: &str, scene: &Scene, cases: &[&str]) {
    let rows: Vec<_> = cases.iter().map(|case| refusal(scene, case, case, |_| {})).collect();
    snapshot(name, &rows);
}

fn bad_command_lines() {
    let scene = Scene::new();
    scene.write("empty", "");
    refusals(
        "bad_command_lines",
        &scene,
        &[
            "",
            "--unknown",
            "--kernel DIR/heartbeat --memory much",
            "--kernel DIR/heartbeat --memory 1M",
            "--kernel DIR/heartbeat --memory 16M,share=perhaps",
            "--kernel DIR/heartbeat --memory 17M,pages=2m",
            "--kernel DIR/heartbeat --cpus 0",
            "--kernel DIR/heartbeat --cpus 65",
            "--kernel DIR/heartbeat --serial tcp:1",
            "--kernel DIR/heartbeat --qmp tcp:1",
            "--kernel DIR/heartbeat --incoming tcp:1",
            "--kernel DIR/heartbeat --incoming unix:DIR/missing/main",
            "--kernel DIR/heartbeat --incoming tcp:localhost:1 --incoming defer",
            "--kernel DIR/heartbeat --incoming defer --incoming file:DIR/state",
            "--kernel DIR/heartbeat --incoming {}",
            "--kernel DIR/heartbeat --log loud",
            "--kernel DIR/heartbeat stray",
            "--kernel DIR/missing",
            "--kernel DIR",
            "--kernel DIR/empty",
            "--kernel DIR/heartbeat --initrd DIR/missing",
            "--kernel DIR/heartbeat --log-file DIR/missing/log",
            "--kernel DIR/heartbeat --qmp unix:DIR/missing/qmp",
            "--kernel DIR/heartbeat --incoming file:DIR/state",
            "--incoming defer --incoming-ram DIR/ram",
        ],
    );
}

fn bad_command_lines_of_a_machine() {
    let scene = Scene::new();
    scene.write("text", "#!/bin/sh\nexec true\n");
    let guest = std::fs::read(scene.path("heartbeat")).expect("it was just written");
    scene.write("cut", &guest[..100]);
    let bzimage = std::fs::read(scene.path("bzimage")).expect("it was just written");
    scene.write("cut-bzimage", &bzimage[..bzimage.len() - 1]);
    scene.write("initrd", vec![0; 20 << 20]);
    refusals(
        "bad_command_lines_of_a_machine",
        &scene,
        &[
            "--kernel DIR/text",
            "--kernel DIR/cut",
            "--kernel DIR/without-note",
            "--kernel DIR/cut-bzimage",
            "--kernel DIR/heartbeat --memory 16M --initrd DIR/initrd",
            "--kernel DIR/heartbeat --memory 16M --serial file:DIR/missing/serial",
            "--kernel DIR/heartbeat --memory 16M --serial unix:DIR/missing/serial",
            "--kernel DIR/heartbeat --memory 16M --serial unix:DIR/heartbeat",
            "--kernel DIR/heartbeat --memory 16M --pid-file DIR/missing/pid",
        ],
    );
}

/// Requires a host without free huge pages.
fn huge_pages() -> Missing {
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let none = free.is_ok_and(|pages| pages.trim() == "0");
    (!none).then(|| "needs a host without free 2 MiB pages".to_owned())
}

fn huge_pages_that_are_not_there() {
    refusals(
        "huge_pages_that_are_not_there",
        &Scene::new(),
        &["--kernel DIR/heartbeat --memory 16M,pages=2m"],
    );
}

fn a_socket_that_is_taken() {
    let scene = Scene::new();
    let mut vm = scene.start("--kernel DIR/heartbeat --memory 16M");
    let mut qmp = vm.qmp();
    refusals("a_socket_that_is_taken", &scene, &["--kernel DIR/heartbeat --qmp unix:DIR/qmp"]);
    // The VMM that owns the socket is not affected: it got no client and lost none.
    assert_eq!(qmp.run_state(), RunState::Running);
    assert_eq!(vm.qmp().run_state(), RunState::Running);
}

fn a_file_where_the_socket_should_be() {
    let scene = Scene::new();
    let path = scene.write("file", "precious");
    refusals(
        "a_file_where_the_socket_should_be",
        &scene,
        &["--kernel DIR/heartbeat --qmp unix:DIR/file", "--kernel DIR/heartbeat --qmp unix:DIR"],
    );
    assert_eq!(std::fs::read(path).expect("the file exists"), b"precious");
}

fn a_socket_left_behind_is_replaced() {
    let scene = Scene::new();
    let path = scene.path("qmp");
    drop(UnixListener::bind(&path).expect("the path is free"));
    let mut vm = scene.start("--kernel DIR/heartbeat --memory 16M");
    assert_eq!(vm.qmp().run_state(), RunState::Running);
    let meta = std::fs::symlink_metadata(&path).expect("the socket exists");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
}
