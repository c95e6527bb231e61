//! Saves that crash or hang, processes that die, and what comes in between.

use std::fs::{self, File};

use cpr_qmp::command::{Command, MigrateArgs};
use cpr_qmp::event::{Continued, EventKind};
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use nix::sys::signal::Signal;

use crate::steps::*;
use crate::support::{Beats, Scene, process, until};
use crate::transfer::{fifo, is_running, outcome, status};

const POINTS: [&str; 7] = ["helper", "pause", "paused", "save", "channel", "commit", "check"];

pub fn failed_save_leaves_the_guest() {
    for point in POINTS {
        let scene = Scene::new();
        let mut vm = scene.start(&format!("{GUEST} --failpoint {point}=errno=EIO"));
        let mut qmp = vm.qmp();
        let beats = Beats::of(vm.pid());
        is_running(&mut qmp, &beats, 1);
        let text = match point {
            "check" => begin(&scene, &mut qmp, "file:DIR/state").expect_err("it is refused").desc,
            _ => fail(&scene, &mut qmp),
        };
        assert!(text.contains(&format!("fail point {point}")), "{text}");
        is_running(&mut qmp, &beats, 1);
        let resumes = qmp.take_events().iter().filter(|e| **e == EventKind::Resume).count();
        let stopped = !["check", "helper", "pause"].contains(&point);
        assert_eq!(resumes, usize::from(stopped), "{point}");
        assert!(!scene.path("state").exists(), "{point}");
        can_be_saved(&scene, &mut vm, &mut qmp, &beats);
    }
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --failpoint channel=short-write"));
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    let text = fail(&scene, &mut qmp);
    assert!(text.contains("bytes after the write"), "{text}");
    assert!(!scene.path("state").exists());
    can_be_saved(&scene, &mut vm, &mut qmp, &beats);
}

/// A stopped guest stays stopped, too.
pub fn crashed_save_leaves_the_guest() {
    for (point, action) in
        [("pause", "panic"), ("save", "segv"), ("commit", "panic"), ("commit", "abort")]
    {
        for keeper in ["update", "off"] {
            let scene = Scene::new();
            let mut vm =
                scene.start(&format!("{GUEST} --keeper {keeper} --failpoint {point}={action}"));
            let mut qmp = vm.qmp();
            let beats = Beats::of(vm.pid());
            is_running(&mut qmp, &beats, 1);
            begin(&scene, &mut qmp, "file:DIR/state").expect("the save is accepted");
            let (ended, mut events) = outcome(&mut qmp);
            assert_eq!(ended, MigrationStatus::Failed);
            let text = qmp.migration().error_desc.expect("a failure says why");
            assert!(text.contains("crashed"), "{point} {action} {keeper}: {text}");
            is_running(&mut qmp, &beats, 1);
            events.extend(qmp.take_events());
            let count = |wanted| events.iter().filter(|event| **event == wanted).count();
            assert_eq!(count(EventKind::Stop), count(EventKind::Resume), "{events:?}");
            assert!(!scene.path("state").exists(), "{point} {action} {keeper}");
            can_be_saved(&scene, &mut vm, &mut qmp, &beats);
        }
    }
}

pub fn hanging_save_leaves_the_guest() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --failpoint commit=hang"));
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    is_running(&mut qmp, &beats, 1);
    set_mode(&mut qmp, Some(1000));
    let text = fail(&scene, &mut qmp);
    assert!(text.contains("did not finish in time"), "{text}");
    is_running(&mut qmp, &beats, 1);
    assert!(!scene.path("state").exists());
    can_be_saved(&scene, &mut vm, &mut qmp, &beats);
}

pub fn keeper_continues_a_guest_that_was_not_saved() {
    for point in ["pause", "save", "channel", "commit"] {
        for keeper in ["update", "on"] {
            let scene = Scene::new();
            let mut vm =
                scene.start(&format!("{GUEST} --keeper {keeper} --failpoint {point}=sigkill"));
            let mut qmp = vm.qmp();
            let beats = Beats::of(vm.pid());
            is_running(&mut qmp, &beats, 1);
            begin(&scene, &mut qmp, "file:DIR/state").expect("the save is accepted");
            let continued: Continued = qmp.event_data(Continued::NAME);
            assert_eq!(continued.former_pid, vm.pid() as i32);
            is_running(&mut qmp, &beats, 1);
            assert_eq!(qmp.migration().status, Some(MigrationStatus::Failed));
            // At `commit` the whole state was on disk.
            assert!(!scene.path("state").exists(), "{point} {keeper}");
            vm.end();
            qmp.take_events();
            save(&scene, &mut qmp);
            qmp.done(Command::Quit);
            until("the end of the process that continued", || {
                match process::naming(&scene.path("heartbeat")).as_slice() {
                    [] => Ok(()),
                    left => Err(left.to_vec()),
                }
            });
            let (_new, mut new_qmp) = crate::steps::continued(&scene, "last-", GUEST);
            is_running(&mut new_qmp, &beats, 1);
        }
    }
}

pub fn keeper_does_not_revive_a_saved_guest() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    is_running(&mut qmp, &beats, 1);
    save(&scene, &mut qmp);
    assert_eq!(process::children(vm.pid()), [0; 0]);
    process::send(vm.pid(), Signal::SIGKILL);
    vm.end();
    assert_eq!(process::naming(&scene.path("heartbeat")), [0; 0]);
    let (_new, mut new_qmp) = continued(&scene, "new-", GUEST);
    is_running(&mut new_qmp, &beats, 1);
}

/// Nothing continues the guest, but its state is complete.
pub fn saved_state_survives_the_process() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper off --failpoint commit=sigkill"));
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    is_running(&mut qmp, &beats, 1);
    begin(&scene, &mut qmp, "file:DIR/state").expect("the save is accepted");
    vm.end();
    let (_new, mut new_qmp) = continued(&scene, "new-", GUEST);
    is_running(&mut new_qmp, &beats, 1);
}

/// Until a process has claimed the guest, the next one can try.
pub fn killed_loader_leaves_the_state() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    is_running(&mut qmp, &beats, 1);
    save(&scene, &mut qmp);
    quit(&mut vm, &mut qmp);
    let before = fs::read(ram(&scene)).unwrap();
    for point in ["read", "create-vcpus", "vcpus", "commit"] {
        for action in ["sigkill", "panic", "errno=EIO"] {
            let arguments =
                format!("{GUEST} --failpoint {point}={action} --incoming file:DIR/state");
            let mut new = scene.start_beside("failing-", &arguments, |_| {});
            assert!(!new.end().success(), "{point} {action}");
            assert!(fs::read(ram(&scene)).unwrap() == before, "{point} {action}");
        }
    }
    let (_new, mut new_qmp) = continued(&scene, "new-", GUEST);
    is_running(&mut new_qmp, &beats, 1);
}

/// A host that shuts down sends SIGTERM: the guest is saved before the VMM ends.
pub fn end_signal_does_not_spoil_the_save() {
    let scene = Scene::new();
    let fifo = fifo(&scene);
    let mut vm = scene.start(&format!("{GUEST} --failpoint channel=hold=DIR/fifo"));
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    is_running(&mut qmp, &beats, 1);
    begin(&scene, &mut qmp, "file:DIR/state").expect("the save is accepted");
    // Opens once the VMM has reached the fail point.
    let held = File::options().write(true).open(&fifo).unwrap();
    process::send(vm.pid(), Signal::SIGTERM);
    drop(held);
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Completed);
    assert_eq!(vm.end().code(), Some(0), "{}", vm.stderr());
    let (_new, mut new_qmp) = continued(&scene, "new-", GUEST);
    is_running(&mut new_qmp, &beats, 1);
}

pub fn queued_commands_wait_for_the_save() {
    let scene = Scene::new();
    let fifo = fifo(&scene);
    let mut vm = scene.start(&format!("{GUEST} --failpoint channel=hold=DIR/fifo"));
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    is_running(&mut qmp, &beats, 1);
    begin(&scene, &mut qmp, "file:DIR/state").expect("the save is accepted");
    let held = File::options().write(true).open(&fifo).unwrap();
    let uri = Some(format!("file:{}/state", scene.dir()));
    qmp.send(Command::Migrate(MigrateArgs { uri, ..MigrateArgs::default() }));
    qmp.send(Command::MigrateCancel);
    qmp.send(Command::Quit);
    drop(held);
    let second = qmp.answer("the answer to the second migrate").expect_err("there was one").desc;
    assert!(second.contains("the guest was saved"), "{second}");
    qmp.answer("the answer to migrate_cancel").expect("it has no effect");
    qmp.answer("the answer to quit").expect("it ends the VMM");
    let events = qmp.take_events();
    assert!(events.contains(&status(MigrationStatus::Completed)), "{events:?}");
    assert_eq!(vm.end().code(), Some(0), "{}", vm.stderr());
    let (_new, mut new_qmp) = continued(&scene, "new-", GUEST);
    is_running(&mut new_qmp, &beats, 1);
}

pub fn disconnected_client_does_not_stop_the_save() {
    let scene = Scene::new();
    let fifo = fifo(&scene);
    let mut vm = scene.start(&format!("{GUEST} --failpoint save=hold=DIR/fifo"));
    let (mut qmp, mut other) = (vm.qmp(), vm.qmp());
    let beats = Beats::of(vm.pid());
    is_running(&mut qmp, &beats, 1);
    begin(&scene, &mut qmp, "file:DIR/state").expect("the save is accepted");
    let held = File::options().write(true).open(&fifo).unwrap();
    drop(qmp);
    drop(held);
    assert_eq!(outcome(&mut other).0, MigrationStatus::Completed);
    assert_eq!(other.run_state(), RunState::Postmigrate);
    quit(&mut vm, &mut other);
    let (_new, mut new_qmp) = continued(&scene, "new-", GUEST);
    is_running(&mut new_qmp, &beats, 1);
}
