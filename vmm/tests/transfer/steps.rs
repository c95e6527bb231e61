//! The steps of these tests: starting a process that waits, and transferring a guest to it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use cpr_qmp::address::MigrationChannel;
use cpr_qmp::command::{Command, MigrateArgs, MigrateSetCapabilitiesArgs};
use cpr_qmp::event::EventKind;
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::{
    MigMode, MigrationCapability, MigrationCapabilityStatus, MigrationParameters, MigrationStatus,
};
use cpr_qmp::run_state::RunState;
use nix::sys::stat::Mode;

use crate::support::{Beats, PATIENCE, Qmp, Scene, Vm};

pub const GUEST: &str = "--kernel DIR/heartbeat --memory 16M";

/// The two `--incoming` options of a process called `name`.
pub fn incoming(scene: &Scene, name: &str, main: &str) -> String {
    format!("--incoming {main} --incoming {}", cpr_channel(scene, name))
}

pub fn cpr_channel(scene: &Scene, name: &str) -> String {
    let path = cpr_path(scene, name).display().to_string();
    format!(
        r#"{{"channel-type":"cpr","addr":{{"transport":"socket","type":"unix","path":"{path}"}}}}"#
    )
}

pub fn cpr_path(scene: &Scene, name: &str) -> PathBuf {
    scene.path(&format!("{name}cpr"))
}

/// Starts a process that waits for a guest.
pub fn waiting<'a>(scene: &'a Scene, name: &str, arguments: &str) -> (Vm<'a>, Qmp) {
    let incoming = incoming(scene, name, &format!("unix:DIR/{name}main"));
    let mut vm = scene.start_beside(name, &format!("{arguments} {incoming}"), |_| {});
    let mut qmp = vm.qmp();
    with_events(&mut qmp);
    assert_eq!(qmp.run_state(), RunState::Inmigrate);
    (vm, qmp)
}

pub fn with_events(qmp: &mut Qmp) {
    let events = MigrationCapabilityStatus { capability: MigrationCapability::Events, state: true };
    qmp.done(Command::MigrateSetCapabilities(MigrateSetCapabilitiesArgs {
        capabilities: vec![events],
    }));
}

/// Begins a transfer to the process called `name`.
pub fn begin(scene: &Scene, qmp: &mut Qmp, name: &str, main: &str) -> Result<(), QmpError> {
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

pub fn migrate(qmp: &mut Qmp, channels: Option<Vec<MigrationChannel>>) -> Result<(), QmpError> {
    with_events(qmp);
    set_mode(qmp, None);
    let uri = channels.is_none().then(|| "unix:/nowhere".to_owned());
    qmp.execute(Command::Migrate(MigrateArgs { uri, channels, resume: None })).map(drop)
}

pub fn set_mode(qmp: &mut Qmp, deadline: Option<u64>) {
    qmp.done(Command::MigrateSetParameters(MigrationParameters {
        mode: Some(MigMode::CprTransfer),
        x_cpr_exec_deadline: deadline,
        ..MigrationParameters::default()
    }));
}

/// Transfers to the process called `name`, and returns the final status.
pub fn transfer(scene: &Scene, qmp: &mut Qmp, name: &str) -> MigrationStatus {
    begin(scene, qmp, name, &format!("unix:DIR/{name}main")).expect("the transfer is accepted");
    outcome(qmp).0
}

/// Waits for the end of a migration, and returns it with the events up to then.
pub fn outcome(qmp: &mut Qmp) -> (MigrationStatus, Vec<EventKind>) {
    let seen = std::cell::RefCell::new(Vec::new());
    let ended = qmp.event("the end of the migration", |event| {
        let new = event.migration_status();
        seen.borrow_mut().push(new.map_or(event, status));
        let ends = |status: &_| {
            use MigrationStatus::{Cancelled, Completed, Failed};
            matches!(status, Completed | Failed | Cancelled)
        };
        new.filter(ends)
    });
    (ended, seen.into_inner())
}

pub fn status(status: MigrationStatus) -> EventKind {
    EventKind::migration(status)
}

pub fn is_running(qmp: &mut Qmp, beats: &Beats, cpus: usize) {
    assert_eq!(qmp.run_state(), RunState::Running);
    beats.go_on(cpus);
}

/// Sends `text` and checks that the guest sends it back.
pub fn echoes(mut client: &UnixStream, text: &[u8]) {
    client.write_all(text).expect("the VMM accepts it");
    let mut back = vec![0; text.len()];
    client.read_exact(&mut back).expect("the guest sends it back");
    assert!(back == text, "{} came back as {}", text.escape_ascii(), back.escape_ascii());
}

pub fn serial(scene: &Scene, name: &str) -> UnixStream {
    let client = UnixStream::connect(scene.path(name)).expect("there is a listener");
    client.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
    client
}

/// Checks that nothing of a failed transfer is in the way of the next one.
pub fn can_move(scene: &Scene, qmp: &mut Qmp, beats: &Beats) {
    set_mode(qmp, Some(30_000));
    let (_new, mut new_qmp) = waiting(scene, "last-", GUEST);
    let moved = transfer(scene, qmp, "last-");
    assert_eq!(moved, MigrationStatus::Completed, "{:?}", qmp.migration().error_desc);
    outcome(&mut new_qmp);
    is_running(&mut new_qmp, beats, 1);
}

/// Creates a FIFO at which a process waits that is told to by a fail point.
pub fn fifo(scene: &Scene) -> PathBuf {
    let fifo = scene.path("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    fifo
}
