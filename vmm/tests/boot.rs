//! Tests that guests boot by each protocol, and boot again on a reset after an update.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use cpr_qmp::command::Command;
use support::trials::{self, kvm, trials};
use support::{PATIENCE, Scene};

fn main() -> ExitCode {
    trials::run(trials![kvm();
        bzimage_finds_its_command_line,
    ])
}

fn expect(mut client: &UnixStream, what: &str, bytes: &[u8]) {
    let mut seen = vec![0; bytes.len()];
    client.read_exact(&mut seen).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(seen == bytes, "{what}: {} instead of {}", seen.escape_ascii(), bytes.escape_ascii());
}

fn bzimage_finds_its_command_line() {
    let scene = Scene::new();
    let mut vm = scene.start(
        "--kernel DIR/bzimage --memory 16M --cmdline console=ttyS0 --paused --serial unix:DIR/serial",
    );
    let mut qmp = vm.qmp();
    let mut serial = UnixStream::connect(scene.path("serial")).expect("there is a listener");
    serial.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
    qmp.done(Command::Cont);
    expect(&serial, "the command line", b"console=ttyS0\0");
    vm.update(&mut qmp);
    serial.write_all(b"after").expect("the VMM accepts it");
    expect(&serial, "the echo", b"after");
    qmp.done(Command::SystemReset);
    expect(&serial, "the command line after a reset", b"console=ttyS0\0");
}
