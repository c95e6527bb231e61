//! The steps of these tests: saving a guest, and continuing it in another process.

use std::fs;
use std::path::PathBuf;

use cpr_qmp::command::{Command, MigrateArgs};
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::{MigMode, MigrationParameters, MigrationStatus};
use cpr_qmp::run_state::RunState;

use crate::support::{Beats, Qmp, Scene, Vm};
use crate::transfer::{is_running, outcome, with_events};

pub const GUEST: &str = "--kernel DIR/heartbeat --memory 16M,file=DIR/pc.ram";

/// Begins to save the guest to `uri`, in which `DIR` is the scene's directory.
pub fn begin(scene: &Scene, qmp: &mut Qmp, uri: &str) -> Result<(), QmpError> {
    with_events(qmp);
    set_mode(qmp, None);
    let uri = Some(uri.replace("DIR", scene.dir()));
    qmp.execute(Command::Migrate(MigrateArgs { uri, ..MigrateArgs::default() })).map(drop)
}

pub fn set_mode(qmp: &mut Qmp, deadline: Option<u64>) {
    qmp.done(Command::MigrateSetParameters(MigrationParameters {
        mode: Some(MigMode::CprReboot),
        x_cpr_exec_deadline: deadline,
        ..MigrationParameters::default()
    }));
}

/// Saves the guest to `DIR/state`.
pub fn save(scene: &Scene, qmp: &mut Qmp) {
    begin(scene, qmp, "file:DIR/state").expect("the save is accepted");
    let (ended, _) = outcome(qmp);
    assert_eq!(ended, MigrationStatus::Completed, "{:?}", qmp.migration().error_desc);
    assert_eq!(qmp.run_state(), RunState::Postmigrate);
    qmp.take_events();
}

/// Begins to save the guest, which must fail; returns why.
pub fn fail(scene: &Scene, qmp: &mut Qmp) -> String {
    begin(scene, qmp, "file:DIR/state").expect("the save is accepted");
    assert_eq!(outcome(qmp).0, MigrationStatus::Failed);
    qmp.migration().error_desc.expect("a failure says why")
}

pub fn quit(vm: &mut Vm<'_>, qmp: &mut Qmp) {
    qmp.done(Command::Quit);
    assert_eq!(vm.end().code(), Some(0), "{}", vm.stderr());
}

/// Starts a process called `name` that continues the guest in `DIR/state`.
pub fn continued<'a>(scene: &'a Scene, name: &str, arguments: &str) -> (Vm<'a>, Qmp) {
    let arguments = format!("{arguments} --incoming file:DIR/state");
    let mut vm = scene.start_beside(name, &arguments, |_| {});
    let qmp = vm.qmp();
    (vm, qmp)
}

/// Starts such a process, which must refuse the state and change nothing; returns why.
pub fn refused(scene: &Scene, arguments: &str) -> String {
    let (state, ram) = (fs::read(scene.path("state")), fs::read(ram(scene)));
    let text = refused_while_running(scene, arguments);
    assert_eq!(fs::read(scene.path("state")).ok(), state.ok());
    assert!(fs::read(self::ram(scene)).ok() == ram.ok(), "RAM has changed: {text}");
    text
}

/// Like [`refused`], for a guest that may be running.
pub fn refused_while_running(scene: &Scene, arguments: &str) -> String {
    let arguments = format!("{arguments} --incoming file:DIR/state");
    let mut vm = scene.start_beside("refused-", &arguments, |_| {});
    assert_eq!(vm.end().code(), Some(1), "{}", vm.stderr());
    let text = vm.stderr();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.trim_end().to_owned()
}

/// Checks that the guest can be saved and continued after whatever went wrong before.
pub fn can_be_saved(scene: &Scene, vm: &mut Vm<'_>, qmp: &mut Qmp, beats: &Beats) {
    set_mode(qmp, Some(30_000));
    is_running(qmp, beats, 1);
    save(scene, qmp);
    quit(vm, qmp);
    let (_new, mut new_qmp) = continued(scene, "last-", GUEST);
    is_running(&mut new_qmp, beats, 1);
}

pub fn ram(scene: &Scene) -> PathBuf {
    scene.path("pc.ram")
}

/// Compares the lines with the snapshot `name`. Times differ from run to run.
pub fn snapshot(scene: &Scene, name: &str, lines: &[String]) {
    let text = scene.redact(&lines.join("\n"));
    insta::with_settings!({
        prepend_module_to_snapshot => false,
        filters => vec![(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME")],
    }, {
        insta::assert_snapshot!(name, text);
    });
}
