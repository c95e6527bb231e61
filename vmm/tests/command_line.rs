//! What the binary refuses: with which words and status, and that it leaves nothing behind.

// Parts of it are for other tests.
#[allow(dead_code, unused_imports)]
mod support;

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use cpr_qmp::run_state::RunState;
use cpr_vmm::memory::{PC_RAM, RamBlockInfo};
use cpr_vmm::migration::cpr::named_fds::NamedFd;
use cpr_vmm::migration::cpr::state::{CprState, ENV_NAME, MigrationRecord};
use cpr_vmm::qmp::{ConnectionState, ServerState};
use cpr_vmm::state::Envelope;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use support::trials::{self, Missing, kvm, trial, trials};
use support::{PATIENCE, Scene};

fn main() -> ExitCode {
    let mut tests = trials![None; bad_command_lines, forged_variables, forged_states];
    tests.extend(trials![kvm();
        bad_command_lines_of_a_machine,
        forged_states_of_a_machine,
        a_socket_that_is_taken,
        a_file_where_the_socket_should_be,
        a_socket_left_behind_is_replaced,
    ]);
    tests.push(trial("huge_pages_that_are_not_there", huge_pages(), huge_pages_that_are_not_there));
    trials::run(tests)
}

/// Runs the VMM, which must refuse to start, and says how it did that under the head `title`.
fn refusal(
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

fn snapshot(name: &str, rows: &[String]) {
    insta::with_settings!({ prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(name, rows.join("\n"));
    });
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
            "--kernel DIR/heartbeat --log loud",
            "--kernel DIR/heartbeat stray",
            "--kernel DIR/missing",
            "--kernel DIR",
            "--kernel DIR/empty",
            "--kernel DIR/heartbeat --initrd DIR/missing",
            "--kernel DIR/heartbeat --log-file DIR/missing/log",
            "--kernel DIR/heartbeat --qmp unix:DIR/missing/qmp",
            "--kernel DIR/heartbeat --incoming file:DIR/state",
            "--incoming defer",
        ],
    );
}

fn bad_command_lines_of_a_machine() {
    let scene = Scene::new();
    scene.write("text", "#!/bin/sh\nexec true\n");
    let guest = std::fs::read(scene.path("heartbeat")).expect("it was just written");
    scene.write("cut", &guest[..100]);
    scene.write("initrd", vec![0; 20 << 20]);
    refusals(
        "bad_command_lines_of_a_machine",
        &scene,
        &[
            "--kernel DIR/text",
            "--kernel DIR/cut",
            "--kernel DIR/without-note",
            "--kernel DIR/heartbeat --memory 16M --initrd DIR/initrd",
            "--kernel DIR/heartbeat --memory 16M --serial file:DIR/missing/serial",
            "--kernel DIR/heartbeat --memory 16M --serial unix:DIR/missing/serial",
            "--kernel DIR/heartbeat --memory 16M --serial unix:DIR/heartbeat",
            "--kernel DIR/heartbeat --memory 16M --pid-file DIR/missing/pid",
        ],
    );
}

/// The test is possible only where there are none.
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
    // The one that has it has not noticed: no client came, and none was lost.
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
    assert_eq!(std::fs::read(path).expect("it is there"), b"precious");
}

fn a_socket_left_behind_is_replaced() {
    let scene = Scene::new();
    let path = scene.path("qmp");
    drop(UnixListener::bind(&path).expect("the path is free"));
    let mut vm = scene.start("--kernel DIR/heartbeat --memory 16M");
    assert_eq!(vm.qmp().run_state(), RunState::Running);
    let meta = std::fs::symlink_metadata(&path).expect("it is there");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
}

/// Numbers at which the VMM finds descriptors; fixed, as they are part of messages.
const STATE_FD: RawFd = 70;
const RAM_FD: RawFd = 71;

/// Starts `command` with copies of `fds` at the numbers given, and [`ENV_NAME`] set to `value`.
fn forge(command: &mut Command, value: &OsStr, fds: Vec<(OwnedFd, RawFd)>) {
    command.env(ENV_NAME, value);
    let inherit = move || {
        for (fd, number) in &fds {
            // SAFETY: numbers only; the copy belongs to the program that is to come.
            Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), *number) })?;
        }
        Ok(())
    };
    // SAFETY: it calls nothing but `dup2`, which may be called between fork and exec.
    unsafe { command.pre_exec(inherit) };
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

fn memfd(content: &[u8], seals: SealFlag) -> OwnedFd {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create("forged", flags).expect("a memfd"));
    file.write_all(content).expect("memory can be written to");
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).expect("memfds can be sealed");
    file.into()
}

/// The envelope the VMM expects; another version or magic is what a test gives it.
const ENVELOPE: Envelope = Envelope { magic: *b"CPREXEC\n", version: 1 };

/// A state with nothing wrong, but without any descriptor.
fn state() -> CprState {
    CprState {
        run_state: RunState::Running,
        fds: Vec::new(),
        ram_blocks: vec![RamBlockInfo { name: PC_RAM.to_owned(), size: 16 << 20 }],
        channel: ENVELOPE.seal(b"").1,
        qmp: ServerState::default(),
        serial_listener: None,
        pending_events: Vec::new(),
        helper: None,
        migration: MigrationRecord { events: true, began_ns: 0, paused_ns: 0 },
    }
}

fn encoded(state: &CprState) -> Vec<u8> {
    let mut body = Vec::new();
    ciborium::into_writer(state, &mut body).expect("a state can be encoded");
    body
}

fn sealed(state: &CprState) -> OwnedFd {
    memfd(&ENVELOPE.seal(&encoded(state)).0, all_seals())
}

const TAKE_OVER: &str = "--memory 16M --incoming file:DIR/state";

fn forged_variables() {
    let scene = Scene::new();
    let values = ["", "state", "+70", "-1", " 70", "0x46", "70 ", "99999999999", "69", "1", "70"];
    let mut rows = Vec::new();
    for value in values.map(OsString::from).into_iter().chain([OsStr::from_bytes(b"\xff").into()]) {
        let title = format!("{ENV_NAME}={value:?}");
        let file = File::open(scene.path("heartbeat")).expect("it was just written");
        let fds = vec![(file.into(), STATE_FD)];
        rows.push(refusal(&scene, &title, TAKE_OVER, |vmm| forge(vmm, &value, fds)));
    }
    snapshot("forged_variables", &rows);
}

fn forged_states() {
    let whole = ENVELOPE.seal(&encoded(&state())).0;
    let flip = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let longer = |bytes: &[u8]| [bytes, b"\0"].concat();
    let other_version = Envelope { version: 2, ..ENVELOPE };
    // In a member that nobody knows: even what is skipped is bounded.
    let member = b"\xa1\x61x";
    let nested = [&member[..], &[0x81; 1 << 10], &[0x80]].concat();
    let endless = [&member[..], &[0x5b], &[0xff; 8]].concat();
    let huge = memfd(b"", SealFlag::empty());
    nix::unistd::ftruncate(&huge, 65 << 20).expect("a memfd can be made longer");
    fcntl(&huge, FcntlArg::F_ADD_SEALS(all_seals())).expect("memfds can be sealed");
    let seal = |bytes: &[u8]| memfd(bytes, all_seals());
    let in_envelope = |body: &[u8]| seal(&ENVELOPE.seal(body).0);

    let cases = [
        ("not sealed", memfd(&whole, SealFlag::empty())),
        ("half sealed", memfd(&whole, all_seals() & !SealFlag::F_SEAL_WRITE)),
        ("empty", seal(b"")),
        ("another magic", seal(&flip(0))),
        ("another version", seal(&other_version.seal(&encoded(&state())).0)),
        ("truncated", seal(&whole[..whole.len() - 1])),
        ("trailing byte", seal(&longer(&whole))),
        ("flipped bit", seal(&flip(whole.len() - 1))),
        ("huge", huge),
        ("no CBOR", in_envelope(b"\xff")),
        ("trailing byte inside", in_envelope(&longer(&encoded(&state())))),
        ("nested too deep", in_envelope(&nested)),
        ("endless bytes", in_envelope(&endless)),
        ("another type", in_envelope(b"\x01")),
    ];
    let mut rows = forged_rows(TAKE_OVER, cases.map(|(title, fd)| (title, fd, None)));
    let named = |name: &str, fd| NamedFd { name: name.to_owned(), id: 0, fd };
    let ram = || named("ram.pc.ram", RAM_FD);
    let listing = |fds: Vec<NamedFd>| sealed(&CprState { fds, ..state() });
    let client = ConnectionState {
        fd: "qmp.client.1".to_owned(),
        id: 1,
        negotiated: true,
        pending_input: Vec::new(),
        skipping: None,
        pending_output: Vec::new(),
        in_flight: None,
        ended: false,
    };
    let qmp = ServerState { connections: vec![client], ..ServerState::default() };
    let without_ram = CprState { ram_blocks: Vec::new(), ..state() };
    let with_client = CprState { qmp, fds: vec![ram()], ..state() };
    let cases = [
        ("lists a closed descriptor", listing(vec![named("ram.pc.ram", 69)])),
        ("lists a negative descriptor", listing(vec![named("ram.pc.ram", -1)])),
        ("lists stderr", listing(vec![named("log.file", 2)])),
        ("lists one twice", listing(vec![ram(), named("log.file", RAM_FD)])),
        ("lists itself", listing(vec![named("ram.pc.ram", STATE_FD)])),
        ("lists no RAM", listing(Vec::new())),
        ("knows of no RAM", sealed(&without_ram)),
        ("RAM of another size", listing(vec![ram()])),
    ];
    let small = || Some(memfd(&[0; 4096], SealFlag::empty()));
    rows.extend(forged_rows(TAKE_OVER, cases.map(|(title, fd)| (title, fd, small()))));
    rows.extend(forged_rows(TAKE_OVER, [("lists no client", sealed(&with_client), ram_memfd())]));
    rows.extend(forged_rows(
        "--memory 16M --kernel DIR/heartbeat",
        [("not asked for", sealed(&state()), None)],
    ));
    snapshot("forged_states", &rows);
}

fn forged_states_of_a_machine() {
    let fds = vec![NamedFd { name: "ram.pc.ram".to_owned(), id: 0, fd: RAM_FD }];
    let state = CprState { fds, ..state() };
    // It also warns of a --qmp that was not handed over.
    let arguments = format!("{TAKE_OVER} --log error");
    let rows = forged_rows(&arguments, [("no such file", sealed(&state), ram_memfd())]);
    snapshot("forged_states_of_a_machine", &rows);
}

/// A memfd of the size of [`TAKE_OVER`]'s RAM.
fn ram_memfd() -> Option<OwnedFd> {
    Some(memfd(&vec![0; 16 << 20], SealFlag::empty()))
}

/// A row for each title, state and RAM.
fn forged_rows(
    arguments: &str,
    cases: impl IntoIterator<Item = (&'static str, OwnedFd, Option<OwnedFd>)>,
) -> Vec<String> {
    let scene = Scene::new();
    let row = |(title, state, ram): (&str, OwnedFd, Option<OwnedFd>)| {
        let mut fds = vec![(state, STATE_FD)];
        fds.extend(ram.map(|ram| (ram, RAM_FD)));
        let value = STATE_FD.to_string();
        refusal(&scene, title, arguments, |vmm| forge(vmm, value.as_ref(), fds))
    };
    cases.into_iter().map(row).collect()
}
