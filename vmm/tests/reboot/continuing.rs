//! Guests that are continued.

use std::fs::{self, File};
use std::mem::offset_of;
use std::os::unix::fs::{FileExt, PermissionsExt};

use cpr_qmp::address::MigrationChannel;
use cpr_qmp::command::{Command, MigrateArgs, MigrateIncomingArgs};
use cpr_qmp::event::EventKind;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use guest_images::mailbox::{Damage, MAILBOX_GPA, Mailbox, damage_state};

use crate::steps::*;
use crate::support::{Beats, Scene, process, until};
use crate::transfer::{self, echoes, is_running, outcome, serial, status};

pub fn running_guest_continues(cpus: usize) {
    let scene = Scene::new();
    let arguments = format!("{GUEST} --cpus {cpus} --cmdline cpus={cpus} --log info");
    let mut old = scene.start(&arguments);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, cpus);
    begin(&scene, &mut qmp, "file:DIR/state").expect("the save is accepted");
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
    assert_eq!(process::children(old.pid()), [0; 0]);
    let mode = fs::metadata(scene.path("state")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let saved = fs::read(ram(&scene)).unwrap();
    quit(&mut old, &mut qmp);
    println!("{}", old.stderr());
    // A stopped guest shows that loading changes no RAM.
    let (new, mut new_qmp) = continued(&scene, "new-", &format!("{arguments} --paused"));
    assert_eq!(new_qmp.run_state(), RunState::Paused);
    assert_eq!(new_qmp.migration().status, Some(Completed));
    assert!(fs::read(ram(&scene)).unwrap() == saved, "RAM has changed");
    new_qmp.done(Command::Cont);
    is_running(&mut new_qmp, &beats, cpus);
    assert_eq!(process::children(new.pid()), [0; 0]);
}

pub fn ram_keeps_its_pattern() {
    let scene = Scene::new();
    scene.write("pattern", guest_images::guest("pattern").expect("it is embedded").elf);
    let guest = "--kernel DIR/pattern --memory 16M,file=DIR/pc.ram --cpus 2 --cmdline cpus=2";
    let sweeps = |ram: &File| word(ram, offset_of!(Mailbox, sweeps));
    let is_whole = |ram: &File| {
        let damage = word(ram, offset_of!(Mailbox, damage) + offset_of!(Damage, state)) as u32;
        assert_eq!(damage, damage_state::NONE, "the guest found damage");
    };
    let mut vm = scene.start(guest);
    let mut qmp = vm.qmp();
    let file = File::open(ram(&scene)).unwrap();
    for round in 0..3 {
        let before = sweeps(&file);
        // A whole sweep verifies every page after it was restored.
        until("two sweeps over RAM", || {
            is_whole(&file);
            match sweeps(&file) {
                now if now >= before + 2 => Ok(()),
                now => Err(now),
            }
        });
        save(&scene, &mut qmp);
        quit(&mut vm, &mut qmp);
        (vm, qmp) = continued(&scene, &format!("new{round}-"), guest);
    }
    is_whole(&file);
}

fn word(ram: &File, at: usize) -> u64 {
    let mut bytes = [0; 8];
    ram.read_exact_at(&mut bytes, MAILBOX_GPA + at as u64).expect("RAM has this page");
    u64::from_le_bytes(bytes)
}

pub fn stopped_guest_stays_stopped() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    qmp.done(Command::Stop);
    qmp.take_events();
    begin(&scene, &mut qmp, "file:DIR/state").expect("the save is accepted");
    let (ended, events) = outcome(&mut qmp);
    assert_eq!(ended, MigrationStatus::Completed);
    assert!(!events.contains(&EventKind::Stop), "{events:?}");
    assert_eq!(qmp.migration().downtime, None);
    quit(&mut old, &mut qmp);
    let before = beats.count(0);
    let (_new, mut new_qmp) = continued(&scene, "new-", GUEST);
    assert_eq!(new_qmp.run_state(), RunState::Paused);
    assert_eq!(beats.count(0), before);
    new_qmp.done(Command::Cont);
    is_running(&mut new_qmp, &beats, 1);
}

pub fn paused_option_keeps_the_guest_stopped() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    save(&scene, &mut qmp);
    quit(&mut old, &mut qmp);
    let before = beats.count(0);
    let (_new, mut new_qmp) = continued(&scene, "new-", &format!("{GUEST} --paused"));
    assert_eq!(new_qmp.run_state(), RunState::Paused);
    assert_eq!(beats.count(0), before);
}

pub fn guest_is_saved_many_times() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    is_running(&mut qmp, &beats, 1);
    for (round, keeper) in ["off", "on", "update", "on", "off", "update"].iter().enumerate() {
        save(&scene, &mut qmp);
        quit(&mut vm, &mut qmp);
        let arguments = format!("{GUEST} --keeper {keeper}");
        (vm, qmp) = continued(&scene, &format!("new{round}-"), &arguments);
        is_running(&mut qmp, &beats, 1);
        let keepers = usize::from(*keeper == "on");
        assert_eq!(process::children(vm.pid()).len(), keepers, "{keeper}");
    }
}

pub fn channel_list_is_accepted() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let path = scene.path("state").display().to_string();
    let main = format!(
        r#"{{"channel-type":"main","addr":{{"transport":"file","filename":"{path}","offset":0}}}}"#
    );
    let main: MigrationChannel = serde_json::from_str(&main).unwrap();
    transfer::with_events(&mut qmp);
    set_mode(&mut qmp, None);
    let channels = Some(vec![main]);
    qmp.done(Command::Migrate(MigrateArgs { channels, ..MigrateArgs::default() }));
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Completed);
    quit(&mut old, &mut qmp);
    let (_new, mut new_qmp) = continued(&scene, "new-", GUEST);
    is_running(&mut new_qmp, &beats, 1);
}

pub fn deferred_state_is_loaded() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    save(&scene, &mut qmp);
    quit(&mut old, &mut qmp);
    let mut new = scene.start_beside("new-", &format!("{GUEST} --incoming defer"), |_| {});
    let mut new_qmp = new.qmp();
    transfer::with_events(&mut new_qmp);
    assert_eq!(new_qmp.run_state(), RunState::Inmigrate);
    new_qmp.execute(Command::Cont).expect_err("there is no guest yet");
    let load = |uri: &str, exit_on_error| {
        let uri = Some(uri.replace("DIR", scene.dir()));
        Command::MigrateIncoming(MigrateIncomingArgs { uri, channels: None, exit_on_error })
    };
    let missing = new_qmp.execute(load("file:DIR/missing", Some(false)));
    assert!(missing.expect_err("there is no such file").desc.contains("No such file"));
    assert_eq!(outcome(&mut new_qmp).0, MigrationStatus::Failed);
    assert_eq!(new_qmp.run_state(), RunState::Inmigrate);
    new_qmp.done(load("file:DIR/state", None));
    let (ended, events) = outcome(&mut new_qmp);
    use MigrationStatus::{Active, Completed, Setup};
    assert_eq!(ended, Completed);
    let expected = [status(Setup), status(Active), EventKind::Resume, status(Completed)];
    assert_eq!(events, expected);
    is_running(&mut new_qmp, &beats, 1);
    new_qmp.execute(load("file:DIR/state", None)).expect_err("there is a guest");
    is_running(&mut new_qmp, &beats, 1);
}

/// The file's descriptor and its lock pass on as those of a memfd do.
pub fn ram_file_crosses_updates_and_transfers() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let beats = Beats::of(vm.pid());
    is_running(&mut qmp, &beats, 1);
    vm.update(&mut qmp);
    is_running(&mut qmp, &beats, 1);
    assert!(refused_while_running(&scene, GUEST).contains("another process runs its guest"));
    let (mut new, mut new_qmp) = transfer::waiting(&scene, "new-", GUEST);
    let moved = transfer::transfer(&scene, &mut qmp, "new-");
    assert_eq!(moved, MigrationStatus::Completed, "{:?}", qmp.migration().error_desc);
    outcome(&mut new_qmp);
    is_running(&mut new_qmp, &beats, 1);
    quit(&mut vm, &mut qmp);
    assert!(refused_while_running(&scene, GUEST).contains("another process runs its guest"));
    save(&scene, &mut new_qmp);
    quit(&mut new, &mut new_qmp);
    let (last, mut last_qmp) = continued(&scene, "last-", GUEST);
    is_running(&mut last_qmp, &beats, 1);
    let command = last.command_again("file:DIR/update");
    let alone: Vec<_> = {
        let keep = command.iter().position(|word| word == "--incoming").expect("it was continued");
        command[..keep].iter().chain(&command[keep + 2..]).cloned().collect()
    };
    assert_eq!(last_qmp.update(&alone, &scene.path("update")), MigrationStatus::Completed);
    is_running(&mut last_qmp, &beats, 1);
}

pub fn serial_port_continues() {
    let scene = Scene::new();
    let guest = "--kernel DIR/echo --memory 16M,file=DIR/pc.ram --serial unix:DIR/serial";
    let mut old = scene.start(guest);
    let mut qmp = old.qmp();
    echoes(&serial(&scene, "serial"), b"before");
    save(&scene, &mut qmp);
    quit(&mut old, &mut qmp);
    let (_new, _new_qmp) = continued(&scene, "new-", guest);
    echoes(&serial(&scene, "serial"), b"after");
}

pub fn continued_guest_can_be_reset() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    save(&scene, &mut qmp);
    quit(&mut old, &mut qmp);
    let (_new, mut new_qmp) = continued(&scene, "new-", GUEST);
    new_qmp.done(Command::SystemReset);
    is_running(&mut new_qmp, &beats, 1);
}
