//! Tests that guests boot by each protocol, and boot again on a reset after an update; and that they
//! can power the machine off.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use cpr_qmp::command::Command;
use cpr_qmp::event::EventKind;
use cpr_qmp::run_state::ShutdownCause;
use support::trials::{self, kvm, trials};
use support::{PATIENCE, Qmp, Scene};

fn main() -> ExitCode {
    trials::run(trials![kvm();
        bzimage_finds_its_command_line,
        power_button_is_noticed_after_an_update,
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

fn power_button_is_noticed_after_an_update() {
    for pressed_before in [true, false] {
        let scene = Scene::new();
        let mut vm = scene.start("--kernel DIR/powers-off --memory 16M --paused");
        let mut qmp = vm.qmp();
        let press = |qmp: &mut Qmp| {
            qmp.done(Command::SystemPowerdown);
            qmp.event("POWERDOWN", |event| (event == EventKind::Powerdown).then_some(()));
        };
        if pressed_before {
            press(&mut qmp);
        } else {
            qmp.done(Command::Cont);
        }
        vm.update(&mut qmp);
        if pressed_before {
            qmp.done(Command::Cont);
        } else {
            press(&mut qmp);
        }
        let shutdown = EventKind::Shutdown { guest: true, reason: ShutdownCause::GuestShutdown };
        qmp.event("SHUTDOWN", |event| (event == shutdown).then_some(()));
        assert_eq!(vm.end().code(), Some(0));
    }
}
