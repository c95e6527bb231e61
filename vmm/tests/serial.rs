//! Tests the host's side of the serial port across updates: what a program that is connected to it
//! sees.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::{Command as Program, ExitCode, Stdio};

use cpr_qmp::command::Command;
use nix::errno::Errno;
use support::trials::{self, kvm, trials};
use support::{PATIENCE, Scene, until};

fn main() -> ExitCode {
    trials::run(trials![kvm();
        serial_client_stays_connected,
        next_serial_client_is_served_after_disconnect,
        standard_input_reaches_the_guest_completely,
        unread_output_blocks_nothing,
        serial_output_is_neither_lost_nor_repeated,
    ])
}

fn serial(scene: &Scene) -> UnixStream {
    let client = UnixStream::connect(scene.path("serial")).expect("there is a listener");
    client.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
    client
}

/// Sends `text` and checks that the guest sends it back.
fn echoes(mut client: &UnixStream, text: &[u8]) {
    client.write_all(text).expect("the VMM accepts it");
    let mut back = vec![0; text.len()];
    client.read_exact(&mut back).expect("the guest sends it back");
    assert!(back == text, "{} came back as {}", text.escape_ascii(), back.escape_ascii());
}

fn serial_client_stays_connected() {
    let scene = Scene::new();
    let mut vm = scene.start("--kernel DIR/echo --memory 16M --serial unix:DIR/serial");
    let mut qmp = vm.qmp();
    let first = serial(&scene);
    echoes(&first, b"before");
    // Long enough to be in transit during the whole update: in the socket, the receive FIFO and
    // the guest.
    let long: Vec<u8> = (0..2000_u32).map(|n| n as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| echoes(&first, &long));
        vm.update(&mut qmp);
    });
    echoes(&first, b"after");
    drop(first);
    let second = serial(&scene);
    echoes(&second, b"another");
    vm.update(&mut qmp);
    echoes(&second, b"again");
}

fn next_serial_client_is_served_after_disconnect() {
    let scene = Scene::new();
    // This guest never reads its serial port.
    let mut vm = scene.start("--kernel DIR/alphabet --memory 16M --serial unix:DIR/serial");
    drop(vm.qmp());
    let mut first = serial(&scene);
    first.write_all(&[b'x'; 1000]).expect("the socket has room");
    first.read_exact(&mut [0]).expect("the first client is served");
    drop(first);
    serial(&scene).read_exact(&mut [0]).expect("the next client is served");
}

fn with_stdio(program: &mut Program) {
    program.stdin(Stdio::piped()).stdout(Stdio::piped());
}

fn standard_input_reaches_the_guest_completely() {
    let scene = Scene::new();
    let mut vm = scene.start_with("--kernel DIR/echo --memory 16M --serial stdio", with_stdio);
    let mut qmp = vm.qmp();
    let (mut stdin, mut stdout) = vm.stdio();
    let sent: Vec<u8> = (0..2000_u32).map(|n| n as u8).collect();
    // More than the FIFO holds, and all of it before the guest is resumed.
    qmp.done(Command::Stop);
    stdin.write_all(&sent).expect("the pipe has room");
    vm.update(&mut qmp);
    qmp.done(Command::Cont);
    drop(stdin);
    // End of file comes only with the VMM's exit, so lost bytes would block the read: use a thread.
    let mut back = vec![0; sent.len()];
    let reader = std::thread::spawn(move || stdout.read_exact(&mut back).map(|()| back));
    until("all of the input to come back", || {
        if reader.is_finished() { Ok(()) } else { Err("only part of it") }
    });
    let back = reader.join().expect("the reader does not panic").expect("the VMM keeps running");
    assert!(back == sent, "{}", back.escape_ascii());
}

fn unread_output_blocks_nothing() {
    let scene = Scene::new();
    let mut vm = scene.start_with("--kernel DIR/alphabet --memory 16M --serial stdio", with_stdio);
    let mut qmp = vm.qmp();
    let (_stdin, mut stdout) = vm.stdio();
    let (mut last, mut same) = (0, 0);
    until("the pipe to be full", || {
        let before = last;
        // SAFETY: FIONREAD writes an int.
        Errno::result(unsafe { libc::ioctl(stdout.as_raw_fd(), libc::FIONREAD, &mut last) })
            .expect("FIONREAD works on a pipe");
        same = if last == before && last > 0 { same + 1 } else { 0 };
        if same == 100 { Ok(()) } else { Err(last) }
    });
    qmp.done(Command::Stop);
    vm.update(&mut qmp);
    qmp.done(Command::Cont);
    vm.update(&mut qmp);
    let mut output = vec![0; 80_000];
    stdout.read_exact(&mut output).expect("the VMM keeps running");
    is_the_alphabet(&output);
    qmp.done(Command::Quit);
    assert_eq!(vm.end().code(), Some(0));
}

fn is_the_alphabet(output: &[u8]) {
    let expected = (b'A'..=b'Z').cycle();
    let wrong = output.iter().zip(expected).position(|(found, expected)| *found != expected);
    if let Some(at) = wrong {
        let around = &output[at.saturating_sub(30)..output.len().min(at + 30)];
        panic!("wrong at {at} of {}: {}", output.len(), around.escape_ascii());
    }
}

fn serial_output_is_neither_lost_nor_repeated() {
    let scene = Scene::new();
    let mut vm = scene.start("--kernel DIR/alphabet --memory 16M --serial file:DIR/serial");
    let mut qmp = vm.qmp();
    let file = scene.path("serial");
    let grows = || {
        let length = || fs::metadata(&file).expect("the file exists").len();
        let before = length();
        until("more serial output", || if length() > before { Ok(()) } else { Err(before) });
    };
    for _ in 0..5 {
        grows();
        vm.update(&mut qmp);
    }
    grows();
    qmp.done(Command::Stop);
    is_the_alphabet(&fs::read(&file).expect("the file exists"));
}
