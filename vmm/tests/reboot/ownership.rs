//! Which process may run a saved guest.

use std::fs;

use cpr_qmp::command::Command;
use cpr_qmp::event::EventKind;
use cpr_qmp::run_state::RunState;

use crate::steps::*;
use crate::support::{Beats, Scene, process};
use crate::transfer::is_running;

/// As in QEMU, `cont` continues the guest where it was saved. Its state is stale then.
pub fn saved_guest_continues_here() {
    for (keeper, scene) in [("on", Scene::in_memory()), ("update", Scene::new())] {
        let mut vm = scene.start(&format!("{GUEST} --keeper {keeper}"));
        let mut qmp = vm.qmp();
        let beats = Beats::of(vm.pid());
        is_running(&mut qmp, &beats, 1);
        save(&scene, &mut qmp);
        for command in [Command::SystemPowerdown, Command::InjectNmi] {
            let error = qmp.execute(command).expect_err("the guest is saved").desc;
            assert!(error.contains("the guest was saved or migrated"), "{error}");
        }
        let again = begin(&scene, &mut qmp, "file:DIR/again").expect_err("it is saved").desc;
        assert!(again.contains("the guest was saved or migrated"), "{again}");
        qmp.done(Command::Stop);
        assert_eq!(qmp.run_state(), RunState::Postmigrate);
        let before = beats.count(0);
        qmp.done(Command::MigrateCancel);
        assert_eq!(qmp.run_state(), RunState::Postmigrate);
        assert_eq!(beats.count(0), before);
        qmp.done(Command::Cont);
        is_running(&mut qmp, &beats, 1);
        assert!(qmp.take_events().contains(&EventKind::Resume));
        assert_eq!(process::children(vm.pid()).len(), usize::from(keeper == "on"));
        let text = refused_while_running(&scene, GUEST);
        assert!(text.contains("another process runs its guest"), "{text}");
        // Its state is as stale once this process has ended.
        qmp.done(Command::Stop);
        quit(&mut vm, &mut qmp);
        let text = refused(&scene, GUEST);
        assert!(text.contains("the guest has run since"), "{text}");
    }
}

pub fn saved_guest_can_be_reset_here() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    is_running(&mut qmp, &beats, 1);
    save(&scene, &mut qmp);
    // A process that fails before it claims the guest leaves it here.
    let failing = format!("{GUEST} --log error --failpoint commit=errno=EIO");
    assert!(refused(&scene, &failing).contains("fail point commit"));
    qmp.done(Command::SystemReset);
    assert_eq!(qmp.run_state(), RunState::Prelaunch);
    qmp.done(Command::Cont);
    can_be_saved(&scene, &mut vm, &mut qmp, &beats);
}

pub fn guest_runs_in_one_process_only() {
    let scene = Scene::in_memory();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    save(&scene, &mut qmp);
    // A process that refuses the state does not take the guest away.
    let other = refused(&scene, &format!("{GUEST} --cpus 2"));
    assert!(other.contains("1 vCPUs"), "{other}");
    let (mut new, mut new_qmp) = continued(&scene, "new-", GUEST);
    is_running(&mut new_qmp, &beats, 1);
    let mut texts = Vec::new();
    for command in [Command::Cont, Command::SystemReset] {
        texts.push(qmp.execute(command).expect_err("the guest is elsewhere").desc);
        assert_eq!(qmp.run_state(), RunState::Postmigrate);
    }
    is_running(&mut new_qmp, &beats, 1);
    quit(&mut new, &mut new_qmp);
    for command in [Command::Cont, Command::SystemReset] {
        texts.push(qmp.execute(command).expect_err("the guest was elsewhere").desc);
        assert_eq!(qmp.run_state(), RunState::Postmigrate);
    }
    snapshot(&scene, "reboot_taken", &texts);
    // The lock was not kept.
    assert!(refused(&scene, GUEST).contains("the guest has run since"));
    quit(&mut old, &mut qmp);
}

pub fn old_state_is_stale() {
    let scene = Scene::in_memory();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    is_running(&mut qmp, &beats, 1);
    save(&scene, &mut qmp);
    quit(&mut vm, &mut qmp);
    let first = fs::read(scene.path("state")).unwrap();
    let (mut vm, mut qmp) = continued(&scene, "new-", GUEST);
    is_running(&mut qmp, &beats, 1);
    save(&scene, &mut qmp);
    quit(&mut vm, &mut qmp);
    let second = fs::read(scene.path("state")).unwrap();
    scene.write("state", first);
    let text = refused(&scene, GUEST);
    assert!(text.contains("the guest has run since"), "{text}");
    scene.write("state", second);
    let (_new, mut new_qmp) = continued(&scene, "newer-", GUEST);
    is_running(&mut new_qmp, &beats, 1);
}

pub fn ram_file_is_locked() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    is_running(&mut qmp, &beats, 1);
    let mut second = scene.start_beside("second-", GUEST, |_| {});
    assert_eq!(second.end().code(), Some(1));
    let text = second.stderr();
    assert!(text.contains("another process runs its guest"), "{text}");
    can_be_saved(&scene, &mut vm, &mut qmp, &beats);
}

/// A boot in an existing file is a boot, and no state from before fits it.
pub fn existing_ram_file_boots() {
    let scene = Scene::in_memory();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    is_running(&mut qmp, &Beats::of(vm.pid()), 1);
    save(&scene, &mut qmp);
    quit(&mut vm, &mut qmp);
    let mut vm = scene.start_beside("new-", GUEST, |_| {});
    let mut qmp = vm.qmp();
    is_running(&mut qmp, &Beats::of(vm.pid()), 1);
    quit(&mut vm, &mut qmp);
    let text = refused(&scene, GUEST);
    assert!(text.contains("the guest has run since"), "{text}");
}
