//! Tests which forged hand-overs the binary refuses: error text, exit status, fallback, and that it
//! leaves nothing behind.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use cpr_qmp::migration::MigrationParameters;
use cpr_qmp::run_state::RunState;
use cpr_vmm::memory::{PC_RAM, RamBlockInfo};
use cpr_vmm::migration::cpr::fall_back::Record;
use cpr_vmm::migration::cpr::named_fds::NamedFd;
use cpr_vmm::migration::cpr::state::{CprState, MigrationRecord};
use cpr_vmm::migration::cpr::variables::STATE;
use cpr_vmm::migration::cpr::version::CPR_VERSION;
use cpr_vmm::qmp::{ConnectionState, ServerState};
use cpr_vmm::state::Envelope;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use support::trials::{self, kvm, trials};
use support::{PATIENCE, Scene, refusal, snapshot};

fn main() -> ExitCode {
    let mut tests = trials![None; forged_variables, forged_memfds, forged_states, lost_variables];
    tests.extend(trials![kvm(); forged_states_of_a_machine]);
    trials::run(tests)
}

/// Numbers of the VMM's forged descriptors; fixed, because they appear in messages.
const STATE_FD: RawFd = 70;
const RAM_FD: RawFd = 71;

/// The old binary to fall back to, which prints the reason.
const OLD_BINARY_FD: RawFd = 72;
const OLD_BINARY: [&str; 3] =
    ["sh", "-c", "printf 'gave back: %s\\n' \"$CPR_EXEC_FAILED\" >&2; exit 1"];

/// Has `command` start with a forged state and a fallback record that names its own process.
fn forge_with_way_back(
    command: &mut Command,
    list: Vec<NamedFd>,
    rest: Vec<u8>,
    ram: Option<OwnedFd>,
) {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let state = memfd_create("forged", flags).expect("a memfd");
    let mut file = File::from(state.try_clone().expect("a copy"));
    let shell = File::open("/bin/sh").expect("/bin/sh exists");
    let mut fds = vec![(state, STATE_FD), (shell.into(), OLD_BINARY_FD)];
    fds.extend(ram.map(|ram| (ram, RAM_FD)));
    forge(command, STATE_FD.to_string().as_ref(), fds);
    let record = Record {
        argv: OLD_BINARY.map(|word| word.as_bytes().to_vec().into()).into(),
        environment: Vec::new(),
        binary: OLD_BINARY_FD,
        state: STATE_FD,
        fds: list,
        inherited: vec![OLD_BINARY_FD, RAM_FD],
        ..Record::prepare(PATIENCE)
    };
    let fill = move || {
        let record = Record { pid: std::process::id() as i32, ..record.clone() };
        file.write_all(&[record.seal(), rest.clone()].concat())?;
        Ok(fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals())).map(drop)?)
    };
    // SAFETY: glibc makes its heap usable in a forked child, and nothing else here takes a lock.
    unsafe { command.pre_exec(fill) };
}

/// Has `command` start with copies of `fds` at the given numbers, and [`STATE`] set to `value`.
fn forge(command: &mut Command, value: &OsStr, fds: Vec<(OwnedFd, RawFd)>) {
    command.env(STATE, value);
    let inherit = move || {
        for (fd, number) in &fds {
            // SAFETY: numbers only; the copy belongs to the program that will be executed.
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

/// The envelope that the VMM expects; tests vary its version and magic.
const ENVELOPE: Envelope = Envelope { magic: *b"CPREXEC\n", version: CPR_VERSION };

/// Returns a valid state without any descriptor.
fn state() -> CprState {
    CprState {
        run_state: RunState::Running,
        ram_blocks: vec![RamBlockInfo { name: PC_RAM.to_owned(), size: 16 << 20 }],
        channel: ENVELOPE.seal(b"").1,
        qmp: ServerState::default(),
        serial_listener: None,
        pending_events: Vec::new(),
        helper: None,
        migration: MigrationRecord { events: true, ..Default::default() },
        pid_file: None,
        parameters: MigrationParameters::default(),
        msr_choice: None,
        live: None,
    }
}

fn encoded(state: &CprState) -> Vec<u8> {
    let mut body = Vec::new();
    ciborium::into_writer(state, &mut body).expect("a state can be encoded");
    body
}

fn enveloped(state: &CprState) -> Vec<u8> {
    ENVELOPE.seal(&encoded(state)).0
}

const TAKE_OVER: &str = "--memory 16M --incoming file:DIR/state --log off";

fn forged_variables() {
    let scene = Scene::new();
    let values = ["", "state", "+70", "-1", " 70", "0x46", "70 ", "99999999999", "69", "1", "70"];
    let mut rows = Vec::new();
    for value in values.map(OsString::from).into_iter().chain([OsStr::from_bytes(b"\xff").into()]) {
        let title = format!("{STATE}={value:?}");
        let file = File::open(scene.path("heartbeat")).expect("it was just written");
        let fds = vec![(file.into(), STATE_FD)];
        rows.push(refusal(&scene, &title, TAKE_OVER, |vmm| forge(vmm, &value, fds)));
    }
    snapshot("forged_variables", &rows);
}

/// Without a fallback record, the VMM exits.
fn forged_memfds() {
    let record = Record {
        // Fixed, because the length of the record appears in a message.
        pid: 1,
        comm: Vec::new().into(),
        argv: Vec::new(),
        environment: Vec::new(),
        inherited: Vec::new(),
        state: STATE_FD,
        ..Record::prepare(PATIENCE)
    };
    let whole = [record.seal(), enveloped(&state())].concat();
    let flip = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let huge = memfd(b"", SealFlag::empty());
    nix::unistd::ftruncate(&huge, 65 << 20).expect("a memfd can be made longer");
    fcntl(&huge, FcntlArg::F_ADD_SEALS(all_seals())).expect("memfds can be sealed");
    let seal = |bytes: &[u8]| memfd(bytes, all_seals());
    let fallback = Envelope { magic: *b"CPRBACK\n", version: 1 };
    let cases = [
        ("not sealed", memfd(&whole, SealFlag::empty())),
        ("half sealed", memfd(&whole, all_seals() & !SealFlag::F_SEAL_WRITE)),
        ("empty", seal(b"")),
        ("another magic", seal(&flip(0))),
        ("flipped bit", seal(&flip(60))),
        ("truncated", seal(&whole[..60])),
        ("huge", huge),
        ("no CBOR", seal(&fallback.seal(b"\xff").0)),
        ("of another process", seal(&whole)),
    ];
    let scene = Scene::new();
    let row = |(title, fd): (&str, OwnedFd)| {
        let value = STATE_FD.to_string();
        refusal(&scene, title, TAKE_OVER, |vmm| forge(vmm, value.as_ref(), vec![(fd, STATE_FD)]))
    };
    snapshot("forged_memfds", &cases.map(row));
}

/// With a valid fallback record but a bad state, the VMM falls back.
fn forged_states() {
    let whole = enveloped(&state());
    let flip = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let longer = |bytes: &[u8]| [bytes, b"\0"].concat();
    let other_version = Envelope { version: CPR_VERSION + 1, ..ENVELOPE };
    // In an unknown member: even skipped data is bounded.
    let member = b"\xa1\x61x";
    let nested = [&member[..], &[0x81; 1 << 10], &[0x80]].concat();
    let endless = [&member[..], &[0x5b], &[0xff; 8]].concat();
    let in_envelope = |body: &[u8]| ENVELOPE.seal(body).0;
    let cases = [
        ("empty", Vec::new()),
        ("another magic", flip(0)),
        ("another version", other_version.seal(&encoded(&state())).0),
        ("truncated", whole[..whole.len() - 1].to_vec()),
        ("trailing byte", longer(&whole)),
        ("flipped bit", flip(whole.len() - 1)),
        ("no CBOR", in_envelope(b"\xff")),
        ("trailing byte inside", in_envelope(&longer(&encoded(&state())))),
        ("nested too deep", in_envelope(&nested)),
        ("endless bytes", in_envelope(&endless)),
        ("another type", in_envelope(b"\x01")),
    ];
    let mut rows = Vec::new();
    for (title, rest) in cases {
        rows.push(given_back(title, TAKE_OVER, Vec::new(), rest, None));
    }
    let named = |name: &str, fd| NamedFd { name: name.to_owned(), id: 0, fd };
    let ram = || named("ram.pc.ram", RAM_FD);
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
    let with_client = CprState { qmp, ..state() };
    let cases = [
        ("lists a closed descriptor", vec![named("ram.pc.ram", 69)], state()),
        ("lists a negative descriptor", vec![named("ram.pc.ram", -1)], state()),
        ("lists stderr", vec![named("log.file", 2)], state()),
        ("lists one twice", vec![ram(), named("log.file", RAM_FD)], state()),
        ("lists no RAM", Vec::new(), state()),
        ("knows of no RAM", Vec::new(), without_ram),
        ("RAM of another size", vec![ram()], state()),
    ];
    let small = || Some(memfd(&[0; 4096], SealFlag::empty()));
    for (title, list, state) in cases {
        rows.push(given_back(title, TAKE_OVER, list, enveloped(&state), small()));
    }
    let list = vec![ram()];
    rows.push(given_back("lists no client", TAKE_OVER, list, enveloped(&with_client), ram_memfd()));
    let arguments = "--memory 16M --kernel DIR/heartbeat --log off";
    rows.push(given_back("not asked for", arguments, Vec::new(), enveloped(&state()), None));
    let arguments = "--no-such-option";
    rows.push(given_back("bad option", arguments, Vec::new(), enveloped(&state()), None));
    snapshot("forged_states", &rows);
}

/// The variable does not name the state that was handed over.
fn lost_variables() {
    let scene = Scene::new();
    let mut rows = Vec::new();
    for value in [None, Some("x"), Some("71")] {
        let title = format!("{STATE}={value:?}");
        rows.push(refusal(&scene, &title, TAKE_OVER, |vmm| {
            forge_with_way_back(vmm, Vec::new(), enveloped(&state()), ram_memfd());
            match value {
                Some(value) => vmm.env(STATE, value),
                None => vmm.env_remove(STATE),
            };
        }));
    }
    snapshot("lost_variables", &rows);
}

fn forged_states_of_a_machine() {
    let list = vec![NamedFd { name: "ram.pc.ram".to_owned(), id: 0, fd: RAM_FD }];
    let row = given_back("no such file", TAKE_OVER, list, enveloped(&state()), ram_memfd());
    snapshot("forged_states_of_a_machine", &[row]);
}

fn given_back(
    title: &str,
    arguments: &str,
    list: Vec<NamedFd>,
    rest: Vec<u8>,
    ram: Option<OwnedFd>,
) -> String {
    refusal(&Scene::new(), title, arguments, |vmm| forge_with_way_back(vmm, list, rest, ram))
}

/// Returns a memfd of the size of [`TAKE_OVER`]'s RAM.
fn ram_memfd() -> Option<OwnedFd> {
    Some(memfd(&vec![0; 16 << 20], SealFlag::empty()))
}
