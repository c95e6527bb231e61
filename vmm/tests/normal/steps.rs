//! The steps of these tests: a process that waits, and migrating a guest to it.

use cpr_qmp::command::{Command, MigrateArgs};
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::{MigMode, MigrationParameters, MigrationStatus};
use cpr_qmp::run_state::RunState;

use crate::support::{Beats, Qmp, Scene, Vm};
pub use crate::transfer::{is_running, outcome, status, with_events};

pub const GUEST: &str = "--kernel DIR/heartbeat --memory 16M";
/// The bandwidth at which a copy takes long enough to do something meanwhile, in bytes a second.
pub const SLOW: u64 = 64 << 10;

/// Starts a process that waits for a guest on a Unix socket.
pub fn waiting<'a>(scene: &'a Scene, name: &str, arguments: &str) -> (Vm<'a>, Qmp) {
    let arguments = format!("{arguments} --incoming unix:DIR/{name}main");
    let mut vm = scene.start_beside(name, &arguments, |_| {});
    let mut qmp = vm.qmp();
    with_events(&mut qmp);
    assert_eq!(qmp.run_state(), RunState::Inmigrate);
    (vm, qmp)
}

/// Begins to migrate the guest to `uri`, in which `DIR` is the scene's directory.
pub fn begin(scene: &Scene, qmp: &mut Qmp, uri: &str) -> Result<(), QmpError> {
    with_events(qmp);
    set(qmp, MigrationParameters::default());
    let uri = Some(uri.replace("DIR", scene.dir()));
    qmp.execute(Command::Migrate(MigrateArgs { uri, ..MigrateArgs::default() })).map(drop)
}

/// Sets the mode and these parameters.
pub fn set(qmp: &mut Qmp, parameters: MigrationParameters) {
    let mode = Some(MigMode::Normal);
    qmp.done(Command::MigrateSetParameters(MigrationParameters { mode, ..parameters }));
}

pub fn bandwidth(bandwidth: u64) -> MigrationParameters {
    MigrationParameters { max_bandwidth: Some(bandwidth), ..MigrationParameters::default() }
}

pub fn deadline(ms: u64) -> MigrationParameters {
    MigrationParameters { x_cpr_exec_deadline: Some(ms), ..MigrationParameters::default() }
}

/// Migrates to the process called `name`, and returns the final status.
pub fn migrate(scene: &Scene, qmp: &mut Qmp, name: &str) -> MigrationStatus {
    begin(scene, qmp, &format!("unix:DIR/{name}main")).expect("the migration is accepted");
    outcome(qmp).0
}

/// Migrates, which must succeed.
pub fn move_to(scene: &Scene, qmp: &mut Qmp, name: &str, new: &mut Qmp) {
    let ended = migrate(scene, qmp, name);
    assert_eq!(ended, MigrationStatus::Completed, "{:?}", qmp.migration().error_desc);
    assert_eq!(outcome(new).0, MigrationStatus::Completed);
}

/// Waits until RAM is being copied.
pub fn copying(qmp: &mut Qmp) {
    let is_active = |event| (event == status(MigrationStatus::Active)).then_some(());
    qmp.event("that RAM is being copied", is_active);
}

/// Checks that nothing of a failed migration is in the way of the next one.
pub fn can_move(scene: &Scene, qmp: &mut Qmp) {
    set(qmp, MigrationParameters { max_bandwidth: Some(0), ..deadline(30_000) });
    let (new, mut new_qmp) = waiting(scene, "last-", GUEST);
    move_to(scene, qmp, "last-", &mut new_qmp);
    is_running(&mut new_qmp, &Beats::of(new.pid()), 1);
}
