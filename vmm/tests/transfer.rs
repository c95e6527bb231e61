//! Tests transfers of a guest from one VMM process to another (`cpr-transfer`), as seen from
//! outside.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;

use cpr_qmp::address::MigrationChannel;
use cpr_qmp::command::{Command, MigrateArgs, MigrateSetCapabilitiesArgs};
use cpr_qmp::event::EventKind;
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::{
    MigMode, MigrationCapability, MigrationCapabilityStatus, MigrationParameters, MigrationStatus,
};
use cpr_qmp::run_state::RunState;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use support::process;
use support::trials::{self, kvm, trial, trials};
use support::{Beats, PATIENCE, Qmp, Scene, Vm, until};

fn main() -> ExitCode {
    let mut tests = trials![kvm();
        stopped_guest_stays_stopped,
        paused_option_keeps_the_guest_stopped,
        guest_moves_twice,
        guest_moves_through_a_file,
        serial_client_stays_connected,
        other_serial_port_is_opened_anew,
        moved_guest_can_be_reset_and_updated,
        other_machine_is_refused_by_name,
        channels_are_refused_by_name,
        death_of_the_old_process_does_not_matter,
        keeper_does_not_revive_a_moved_guest,
        keeper_continues_a_guest_that_was_not_claimed,
        late_process_does_not_get_the_guest,
        crashed_handover_leaves_the_guest,
        cancelled_transfer_leaves_the_guest,
        ended_transfer_ends_the_new_process,
        foreign_and_silent_peers_are_dropped,
        wrong_peers_leave_the_guest,
        end_signals_end_a_waiting_process,
    ];
    for cpus in [1, 2] {
        let name = format!("running_guest_moves_with_{cpus}_vcpus");
        tests.push(trial(name, kvm(), move || running_guest_moves(cpus)));
    }
    for point in ["ram", "machine", "create-vcpus", "read", "vcpus", "commit"] {
        for action in ["sigkill", "panic", "errno=EIO"] {
            let name = format!("{action}_at_{point}_leaves_the_guest");
            tests.push(trial(name, kvm(), move || failure_leaves_the_guest(point, action)));
        }
    }
    trials::run(tests)
}

const GUEST: &str = "--kernel DIR/heartbeat --memory 16M";

/// The two `--incoming` options of a process called `name`.
fn incoming(scene: &Scene, name: &str, main: &str) -> String {
    format!("--incoming {main} --incoming {}", cpr_channel(scene, name))
}

fn cpr_channel(scene: &Scene, name: &str) -> String {
    let path = cpr_path(scene, name).display().to_string();
    format!(
        r#"{{"channel-type":"cpr","addr":{{"transport":"socket","type":"unix","path":"{path}"}}}}"#
    )
}

fn cpr_path(scene: &Scene, name: &str) -> PathBuf {
    scene.path(&format!("{name}cpr"))
}

/// Starts a process that waits for a guest.
fn waiting<'a>(scene: &'a Scene, name: &str, arguments: &str) -> (Vm<'a>, Qmp) {
    let incoming = incoming(scene, name, &format!("unix:DIR/{name}main"));
    let mut vm = scene.start_beside(name, &format!("{arguments} {incoming}"), |_| {});
    let mut qmp = vm.qmp();
    with_events(&mut qmp);
    assert_eq!(qmp.run_state(), RunState::Inmigrate);
    (vm, qmp)
}

fn with_events(qmp: &mut Qmp) {
    let events = MigrationCapabilityStatus { capability: MigrationCapability::Events, state: true };
    qmp.done(Command::MigrateSetCapabilities(MigrateSetCapabilitiesArgs {
        capabilities: vec![events],
    }));
}

/// Begins a transfer to the process called `name`.
fn begin(scene: &Scene, qmp: &mut Qmp, name: &str, main: &str) -> Result<(), QmpError> {
    let main = main.replace("DIR", scene.dir());
    let channel = |text: &str| -> MigrationChannel { serde_json::from_str(text).unwrap() };
    let main = match main.split_once(':').expect("a URI") {
        ("file", path) => {
            format!(r#"{{"transport":"file","filename":"{path}","offset":0}}"#)
        }
        (_, path) => format!(r#"{{"transport":"socket","type":"unix","path":"{path}"}}"#),
    };
    let main = channel(&format!(r#"{{"channel-type":"main","addr":{main}}}"#));
    migrate(qmp, Some(vec![main, channel(&cpr_channel(scene, name))]))
}

fn migrate(qmp: &mut Qmp, channels: Option<Vec<MigrationChannel>>) -> Result<(), QmpError> {
    with_events(qmp);
    set_mode(qmp, None);
    let uri = channels.is_none().then(|| "unix:/nowhere".to_owned());
    qmp.execute(Command::Migrate(MigrateArgs { uri, channels, resume: None })).map(drop)
}

fn set_mode(qmp: &mut Qmp, deadline: Option<u64>) {
    qmp.done(Command::MigrateSetParameters(MigrationParameters {
        mode: Some(MigMode::CprTransfer),
        x_cpr_exec_deadline: deadline,
        ..MigrationParameters::default()
    }));
}

/// Transfers to the process called `name`, and returns the final status.
fn transfer(scene: &Scene, qmp: &mut Qmp, name: &str) -> MigrationStatus {
    begin(scene, qmp, name, &format!("unix:DIR/{name}main")).expect("the transfer is accepted");
    outcome(qmp).0
}

/// Waits for the end of a migration, and returns it with the events up to then.
fn outcome(qmp: &mut Qmp) -> (MigrationStatus, Vec<EventKind>) {
    let seen = std::cell::RefCell::new(Vec::new());
    let ended = qmp.event("the end of the migration", |event| {
        seen.borrow_mut().push(event);
        match event {
            EventKind::Migration {
                status:
                    status @ (MigrationStatus::Completed
                    | MigrationStatus::Failed
                    | MigrationStatus::Cancelled),
            } => Some(status),
            _ => None,
        }
    });
    (ended, seen.into_inner())
}

fn status(status: MigrationStatus) -> EventKind {
    EventKind::Migration { status }
}

fn is_running(qmp: &mut Qmp, beats: &Beats, cpus: usize) {
    assert_eq!(qmp.run_state(), RunState::Running);
    beats.go_on(cpus);
}

fn running_guest_moves(cpus: usize) {
    let scene = Scene::new();
    let arguments = format!("{GUEST} --cpus {cpus} --cmdline cpus={cpus} --log info");
    let mut old = scene.start(&arguments);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, cpus);
    let (mut new, mut new_qmp) = waiting(&scene, "new-", &arguments);
    begin(&scene, &mut qmp, "new-", "unix:DIR/new-main").expect("the transfer is accepted");
    let (ended, events) = outcome(&mut qmp);
    assert_eq!(ended, MigrationStatus::Completed, "{:?}", qmp.migration());
    use MigrationStatus::{Active, Completed, Device, Setup};
    let expected =
        [status(Setup), EventKind::Stop, status(Active), status(Device), status(Completed)];
    assert_eq!(events, expected);
    let info = qmp.migration();
    assert_eq!(info.status, Some(Completed));
    assert!(info.total_time.is_some() && info.setup_time.is_some(), "{info:?}");
    assert!(info.downtime.is_some(), "{info:?}");
    assert_eq!(qmp.run_state(), RunState::Postmigrate);
    for command in [Command::Cont, Command::SystemReset, Command::SystemPowerdown] {
        let refused = qmp.execute(command).expect_err("the guest is elsewhere");
        assert!(refused.desc.contains("runs in another process"), "{}", refused.desc);
    }
    let (ended, events) = outcome(&mut new_qmp);
    assert_eq!(ended, Completed);
    let expected = [status(Setup), status(Active), EventKind::Resume, status(Completed)];
    assert_eq!(events, expected);
    is_running(&mut new_qmp, &beats, cpus);
    assert_eq!(process::children(new.pid()), [0; 0]);
    qmp.done(Command::Quit);
    assert_eq!(old.end().code(), Some(0), "{}", old.stderr());
    is_running(&mut new_qmp, &beats, cpus);
    println!("{}", new.stderr());
    new_qmp.done(Command::Quit);
    assert_eq!(new.end().code(), Some(0), "{}", new.stderr());
    for left in ["qmp", "new-qmp", "new-main", "new-cpr"] {
        assert!(!scene.path(left).exists(), "{left} is left");
    }
}

fn stopped_guest_stays_stopped() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    qmp.done(Command::Stop);
    let (_new, mut new_qmp) = waiting(&scene, "new-", GUEST);
    assert_eq!(transfer(&scene, &mut qmp, "new-"), MigrationStatus::Completed);
    assert_eq!(qmp.run_state(), RunState::Postmigrate);
    assert_eq!(qmp.migration().downtime, None);
    outcome(&mut new_qmp);
    assert_eq!(new_qmp.run_state(), RunState::Paused);
    let before = beats.count(0);
    assert_eq!(new_qmp.run_state(), RunState::Paused);
    assert_eq!(beats.count(0), before);
    new_qmp.done(Command::Cont);
    is_running(&mut new_qmp, &beats, 1);
}

fn paused_option_keeps_the_guest_stopped() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let (_new, mut new_qmp) = waiting(&scene, "new-", &format!("{GUEST} --paused"));
    assert_eq!(transfer(&scene, &mut qmp, "new-"), MigrationStatus::Completed);
    outcome(&mut new_qmp);
    assert_eq!(new_qmp.run_state(), RunState::Paused);
    new_qmp.done(Command::Cont);
    is_running(&mut new_qmp, &beats, 1);
}

fn guest_moves_twice() {
    let scene = Scene::new();
    let mut old = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let mut vms = vec![old];
    for (name, keeper) in [("new-", "off"), ("newer-", "on"), ("newest-", "update")] {
        let (new, mut next) = waiting(&scene, name, &format!("{GUEST} --keeper {keeper}"));
        assert_eq!(transfer(&scene, &mut qmp, name), MigrationStatus::Completed, "{name}");
        outcome(&mut next);
        is_running(&mut next, &beats, 1);
        qmp.done(Command::Quit);
        assert_eq!(vms.last_mut().unwrap().end().code(), Some(0));
        vms.push(new);
        qmp = next;
    }
}

fn guest_moves_through_a_file() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let incoming = incoming(&scene, "new-", "file:DIR/state");
    let mut new = scene.start_beside("new-", &format!("{GUEST} {incoming}"), |_| {});
    let mut new_qmp = new.qmp();
    begin(&scene, &mut qmp, "new-", "file:DIR/state").expect("the transfer is accepted");
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Completed);
    until("the guest in the new process", || match new_qmp.run_state() {
        RunState::Running => Ok(()),
        other => Err(other),
    });
    beats.go_on(1);
}

/// Sends `text` and checks that the guest sends it back.
fn echoes(mut client: &UnixStream, text: &[u8]) {
    client.write_all(text).expect("the VMM accepts it");
    let mut back = vec![0; text.len()];
    client.read_exact(&mut back).expect("the guest sends it back");
    assert!(back == text, "{} came back as {}", text.escape_ascii(), back.escape_ascii());
}

fn serial(scene: &Scene, name: &str) -> UnixStream {
    let client = UnixStream::connect(scene.path(name)).expect("there is a listener");
    client.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
    client
}

fn serial_client_stays_connected() {
    let scene = Scene::new();
    let arguments = "--kernel DIR/echo --memory 16M --serial unix:DIR/serial";
    let mut old = scene.start(arguments);
    let mut qmp = old.qmp();
    let client = serial(&scene, "serial");
    echoes(&client, b"before");
    let (_new, mut new_qmp) = waiting(&scene, "new-", arguments);
    let long: Vec<u8> = (0..2000_u32).map(|n| n as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| echoes(&client, &long));
        assert_eq!(transfer(&scene, &mut qmp, "new-"), MigrationStatus::Completed);
    });
    qmp.done(Command::Quit);
    assert_eq!(old.end().code(), Some(0));
    echoes(&client, b"after");
    drop(client);
    assert_eq!(new_qmp.run_state(), RunState::Running);
    echoes(&serial(&scene, "serial"), b"another");
    new_qmp.done(Command::Quit);
    until("the end of the socket's file", || match scene.path("serial").exists() {
        true => Err("it exists"),
        false => Ok(()),
    });
}

fn other_serial_port_is_opened_anew() {
    let scene = Scene::new();
    let arguments = "--kernel DIR/echo --memory 16M --serial unix:DIR/";
    let mut old = scene.start(&format!("{arguments}serial"));
    let mut qmp = old.qmp();
    echoes(&serial(&scene, "serial"), b"before");
    let (_new, mut new_qmp) = waiting(&scene, "new-", &format!("{arguments}other"));
    assert_eq!(transfer(&scene, &mut qmp, "new-"), MigrationStatus::Completed);
    outcome(&mut new_qmp);
    echoes(&serial(&scene, "other"), b"after");
    // The old process has no guest, and so no port.
    assert!(!scene.path("serial").exists());
}

fn moved_guest_can_be_reset_and_updated() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    let (new, mut new_qmp) = waiting(&scene, "new-", GUEST);
    assert_eq!(transfer(&scene, &mut qmp, "new-"), MigrationStatus::Completed);
    outcome(&mut new_qmp);
    new_qmp.done(Command::SystemReset);
    is_running(&mut new_qmp, &beats, 1);
    let command = new.command_again("file:DIR/state");
    let alone: Vec<_> = {
        let keep = command.iter().position(|word| word == "--incoming").expect("it waits");
        let rest = &command[keep + 4..];
        command[..keep].iter().chain(rest).cloned().collect()
    };
    assert_eq!(new_qmp.update(&alone, &new.state_file()), MigrationStatus::Completed);
    is_running(&mut new_qmp, &beats, 1);
}

fn other_machine_is_refused_by_name() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    let mut texts = Vec::new();
    for (name, other) in [
        ("a-", "--kernel DIR/heartbeat --memory 32M"),
        ("b-", "--kernel DIR/heartbeat --memory 16M --cpus 2"),
        ("c-", "--kernel DIR/heartbeat --memory 16M --test-device on"),
    ] {
        let (mut new, _) = waiting(&scene, name, other);
        assert_eq!(transfer(&scene, &mut qmp, name), MigrationStatus::Failed);
        texts.push(qmp.migration().error_desc.expect("a failure says why"));
        assert_eq!(new.end().code(), Some(1));
        texts.push(new.stderr().trim_end().to_owned());
        is_running(&mut qmp, &beats, 1);
    }
    insta::with_settings!({ prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("transfer_other_machine", texts.join("\n"));
    });
    can_move(&scene, &mut qmp, &beats);
}

/// Checks that nothing of a failed transfer is in the way of the next one.
fn can_move(scene: &Scene, qmp: &mut Qmp, beats: &Beats) {
    set_mode(qmp, Some(30_000));
    let (_new, mut new_qmp) = waiting(scene, "last-", GUEST);
    let moved = transfer(scene, qmp, "last-");
    assert_eq!(moved, MigrationStatus::Completed, "{:?}", qmp.migration().error_desc);
    outcome(&mut new_qmp);
    is_running(&mut new_qmp, beats, 1);
}

fn channels_are_refused_by_name() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let refused = |result: Result<(), QmpError>| result.expect_err("it is refused").desc;
    let mut texts = vec![refused(migrate(&mut qmp, None))];
    texts.push(refused(begin(&scene, &mut qmp, "no-", "unix:DIR/no-main")));
    scene.write("no-cpr", "not a socket");
    texts.push(refused(begin(&scene, &mut qmp, "no-", "unix:DIR/no-main")));
    let texts: Vec<_> = texts.iter().map(|text| scene.redact(text)).collect();
    insta::with_settings!({ prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("transfer_channels", texts.join("\n"));
    });
    assert_eq!(qmp.migration().status, None);
    can_move(&scene, &mut qmp, &Beats::of(old.pid()));
}

/// The new process fails before it claims the guest.
fn failure_leaves_the_guest(point: &str, action: &str) {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let arguments = format!("{GUEST} --failpoint {point}={action}");
    let (mut new, new_qmp) = waiting(&scene, "new-", &arguments);
    assert_eq!(transfer(&scene, &mut qmp, "new-"), MigrationStatus::Failed);
    assert!(!new.end().success());
    drop(new_qmp);
    is_running(&mut qmp, &beats, 1);
    assert!(qmp.migration().error_desc.is_some());
    let events = qmp.take_events();
    let resumes = events.iter().filter(|event| **event == EventKind::Resume).count();
    let after_built = ["read", "vcpus", "commit"].contains(&point);
    assert_eq!(resumes, usize::from(after_built), "{events:?}");
    can_move(&scene, &mut qmp, &beats);
}

/// Creates a FIFO at which a process waits that is told to by a fail point.
fn fifo(scene: &Scene) -> PathBuf {
    let fifo = scene.path("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    fifo
}

fn death_of_the_old_process_does_not_matter() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    let (_new, mut new_qmp) = waiting(&scene, "new-", GUEST);
    assert_eq!(transfer(&scene, &mut qmp, "new-"), MigrationStatus::Completed);
    process::send(old.pid(), Signal::SIGKILL);
    old.end();
    outcome(&mut new_qmp);
    is_running(&mut new_qmp, &beats, 1);
}

fn keeper_does_not_revive_a_moved_guest() {
    let scene = Scene::new();
    let mut old = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    let (new, mut new_qmp) = waiting(&scene, "new-", &format!("{GUEST} --keeper on"));
    assert_eq!(transfer(&scene, &mut qmp, "new-"), MigrationStatus::Completed);
    assert_eq!(qmp.run_state(), RunState::Postmigrate);
    assert_eq!(process::children(old.pid()), [0; 0]);
    process::send(old.pid(), Signal::SIGKILL);
    old.end();
    // The new process has a keeper of its own.
    outcome(&mut new_qmp);
    process::send(new.pid(), Signal::SIGKILL);
    let continued: cpr_qmp::event::Continued = new_qmp.event_data(cpr_qmp::event::Continued::NAME);
    assert_eq!(continued.former_pid, new.pid() as i32);
    is_running(&mut new_qmp, &beats, 1);
}

/// The old process dies while the new one has the whole state, but has not claimed the guest.
fn keeper_continues_a_guest_that_was_not_claimed() {
    let scene = Scene::new();
    let fifo = fifo(&scene);
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let arguments = format!("{GUEST} --failpoint commit=hold=DIR/fifo");
    let (mut new, _new_qmp) = waiting(&scene, "new-", &arguments);
    begin(&scene, &mut qmp, "new-", "unix:DIR/new-main").expect("the transfer is accepted");
    // Opens once the new process has reached the fail point.
    let held = File::options().write(true).open(&fifo).unwrap();
    process::send(old.pid(), Signal::SIGKILL);
    let continued: cpr_qmp::event::Continued = qmp.event_data(cpr_qmp::event::Continued::NAME);
    assert_eq!(continued.former_pid, old.pid() as i32);
    is_running(&mut qmp, &beats, 1);
    drop(held);
    assert!(!new.end().success());
    assert!(new.stderr().contains("has taken it back"), "{}", new.stderr());
    is_running(&mut qmp, &beats, 1);
}

/// The new process hangs past the deadline, and must not run the guest when it continues.
fn late_process_does_not_get_the_guest() {
    let scene = Scene::new();
    let fifo = fifo(&scene);
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let arguments = format!("{GUEST} --failpoint commit=hold=DIR/fifo");
    let (mut new, _new_qmp) = waiting(&scene, "new-", &arguments);
    set_mode(&mut qmp, Some(2000));
    begin(&scene, &mut qmp, "new-", "unix:DIR/new-main").expect("the transfer is accepted");
    let held = File::options().write(true).open(&fifo).unwrap();
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Failed);
    let why = qmp.migration().error_desc.expect("a failure says why");
    assert!(why.contains("in time"), "{why}");
    is_running(&mut qmp, &beats, 1);
    drop(held);
    assert!(!new.end().success());
    assert!(new.stderr().contains("has taken it back"), "{}", new.stderr());
    is_running(&mut qmp, &beats, 1);
    can_move(&scene, &mut qmp, &beats);
}

/// The old process itself fails while the guest is paused.
fn crashed_handover_leaves_the_guest() {
    for (point, action) in
        [("pause", "panic"), ("save", "errno=EIO"), ("channel", "panic"), ("channel", "segv")]
    {
        for keeper in ["update", "off"] {
            let scene = Scene::new();
            let mut old =
                scene.start(&format!("{GUEST} --keeper {keeper} --failpoint {point}={action}"));
            let mut qmp = old.qmp();
            let beats = Beats::of(old.pid());
            is_running(&mut qmp, &beats, 1);
            let (mut new, _new_qmp) = waiting(&scene, "new-", GUEST);
            let ended = transfer(&scene, &mut qmp, "new-");
            assert_eq!(ended, MigrationStatus::Failed, "{point} {action} {keeper}");
            is_running(&mut qmp, &beats, 1);
            assert!(!new.end().success());
            is_running(&mut qmp, &beats, 1);
            can_move(&scene, &mut qmp, &beats);
        }
    }
}

fn cancelled_transfer_leaves_the_guest() {
    let scene = Scene::new();
    let fifo = fifo(&scene);
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    let arguments = format!("{GUEST} --failpoint machine=hold=DIR/fifo");
    let (mut new, _new_qmp) = waiting(&scene, "new-", &arguments);
    begin(&scene, &mut qmp, "new-", "unix:DIR/new-main").expect("the transfer is accepted");
    let held = File::options().write(true).open(&fifo).unwrap();
    // The guest runs on meanwhile.
    is_running(&mut qmp, &beats, 1);
    let second = begin(&scene, &mut qmp, "new-", "unix:DIR/new-main");
    assert!(second.expect_err("there is one already").desc.contains("in progress"));
    qmp.done(Command::MigrateCancel);
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Cancelled);
    assert_eq!(qmp.migration().status, Some(MigrationStatus::Cancelled));
    drop(held);
    assert_eq!(new.end().code(), Some(1));
    assert!(new.stderr().contains("the transfer was cancelled"), "{}", new.stderr());
    is_running(&mut qmp, &beats, 1);
    can_move(&scene, &mut qmp, &beats);
}

fn ended_transfer_ends_the_new_process() {
    let scene = Scene::new();
    let fifo = fifo(&scene);
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let arguments = format!("{GUEST} --failpoint machine=hold=DIR/fifo");
    let (mut new, _new_qmp) = waiting(&scene, "new-", &arguments);
    begin(&scene, &mut qmp, "new-", "unix:DIR/new-main").expect("the transfer is accepted");
    let held = File::options().write(true).open(&fifo).unwrap();
    qmp.done(Command::Quit);
    assert_eq!(old.end().code(), Some(0), "{}", old.stderr());
    drop(held);
    assert_eq!(new.end().code(), Some(1));
}

fn foreign_and_silent_peers_are_dropped() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    let (new, mut new_qmp) = waiting(&scene, "new-", GUEST);
    for text in [b"GET / HTTP/1.0\r\n\r\n" as &[u8], &[0; 100], b""] {
        let mut peer = serial(&scene, "new-cpr");
        peer.write_all(text).unwrap();
        drop(peer);
        // A stray connection on the main channel does not count either.
        drop(serial(&scene, "new-main"));
        assert_eq!(new_qmp.run_state(), RunState::Inmigrate);
    }
    // It blocks nothing while it is silent, and is dropped after its deadline.
    let mut silent = serial(&scene, "new-cpr");
    silent.read_exact(&mut [0; 8]).expect("it is greeted");
    assert_eq!(new_qmp.run_state(), RunState::Inmigrate);
    assert_eq!(transfer(&scene, &mut qmp, "new-"), MigrationStatus::Completed);
    outcome(&mut new_qmp);
    is_running(&mut new_qmp, &beats, 1);
    assert!(new.stderr().contains("transfer_peer_dropped"), "{}", new.stderr());
}

fn wrong_peers_leave_the_guest() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    let mut texts = Vec::new();
    for hello in [b"GET / HTTP/1.0\r\n\r\n0123456789012345678901234567890" as &[u8], b"CPRX", b""] {
        let listener = UnixListener::bind(cpr_path(&scene, "new-")).unwrap();
        begin(&scene, &mut qmp, "new-", "unix:DIR/new-main").expect("the transfer is accepted");
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(hello).unwrap();
        drop(peer);
        assert_eq!(outcome(&mut qmp).0, MigrationStatus::Failed);
        texts.push(qmp.migration().error_desc.expect("a failure says why"));
        is_running(&mut qmp, &beats, 1);
        fs::remove_file(cpr_path(&scene, "new-")).unwrap();
    }
    let listener = UnixListener::bind(cpr_path(&scene, "new-")).unwrap();
    set_mode(&mut qmp, Some(200));
    begin(&scene, &mut qmp, "new-", "unix:DIR/new-main").expect("the transfer is accepted");
    let silent = listener.accept().unwrap();
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Failed);
    texts.push(qmp.migration().error_desc.expect("a failure says why"));
    drop(silent);
    insta::with_settings!({ prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("transfer_wrong_peers", texts.join("\n"));
    });
    can_move(&scene, &mut qmp, &beats);
}

fn end_signals_end_a_waiting_process() {
    let scene = Scene::new();
    let before = scene.files();
    let (mut new, _) = waiting(&scene, "new-", GUEST);
    process::send(new.pid(), Signal::SIGTERM);
    assert_eq!(new.end().code(), Some(0));
    fs::remove_file(scene.path("new-stderr")).unwrap();
    assert_eq!(scene.files(), before);
}
