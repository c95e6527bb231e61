//! Migrations that succeed.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;

use cpr_qmp::command::{Command, MigrateIncomingArgs};
use cpr_qmp::event::EventKind;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;

use crate::steps::*;
use crate::support::{Beats, Scene, process, until};
use crate::transfer::fifo;

/// Over TCP: the other tests use a Unix socket.
pub fn running_guest_moves(cpus: usize) {
    let scene = Scene::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let arguments = format!("{GUEST} --cpus {cpus} --cmdline cpus={cpus} --log info");
    let mut old = scene.start(&arguments);
    let mut qmp = old.qmp();
    is_running(&mut qmp, &Beats::of(old.pid()), cpus);
    let uri = format!("tcp:127.0.0.1:{port}");
    let mut new = scene.start_beside("new-", &format!("{arguments} --incoming {uri}"), |_| {});
    let mut new_qmp = new.qmp();
    with_events(&mut new_qmp);
    begin(&scene, &mut qmp, &uri).expect("the migration is accepted");
    let (ended, events) = outcome(&mut qmp);
    println!("{}", old.stderr());
    assert_eq!(ended, MigrationStatus::Completed, "{:?}", qmp.migration());
    use MigrationStatus::{Active, Completed, Device, Setup};
    let is_pass = |event: &EventKind| matches!(event, EventKind::MigrationPass { .. });
    let (passes, others): (Vec<_>, Vec<_>) = events.into_iter().partition(is_pass);
    let expected =
        [status(Setup), status(Active), EventKind::Stop, status(Device), status(Completed)];
    assert_eq!(others, expected);
    let numbered = (1..=passes.len() as u64).map(|pass| EventKind::MigrationPass { pass });
    assert_eq!(passes, numbered.collect::<Vec<_>>());
    assert!(!passes.is_empty());
    let info = qmp.migration();
    assert_eq!(info.status, Some(Completed));
    assert!(info.total_time.is_some() && info.downtime.is_some(), "{info:?}");
    let ram = info.ram.expect("RAM was copied");
    assert_eq!((ram.total, ram.page_size), (16 << 20, 4096), "{ram:?}");
    assert!(ram.normal + ram.duplicate >= ram.total / ram.page_size, "{ram:?}");
    assert!(ram.duplicate > ram.normal && ram.transferred > ram.normal_bytes, "{ram:?}");
    assert_eq!(qmp.run_state(), RunState::Postmigrate);
    let (ended, events) = outcome(&mut new_qmp);
    assert_eq!(ended, Completed);
    let expected = [status(Setup), status(Active), EventKind::Resume, status(Completed)];
    assert_eq!(events, expected);
    let beats = Beats::of(new.pid());
    is_running(&mut new_qmp, &beats, cpus);
    assert_eq!(process::children(old.pid()), [0; 0]);
    qmp.done(Command::Quit);
    assert_eq!(old.end().code(), Some(0), "{}", old.stderr());
    is_running(&mut new_qmp, &beats, cpus);
    new_qmp.done(Command::Quit);
    assert_eq!(new.end().code(), Some(0), "{}", new.stderr());
}

pub fn stopped_guest_stays_stopped() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    is_running(&mut qmp, &Beats::of(old.pid()), 1);
    qmp.done(Command::Stop);
    let (new, mut new_qmp) = waiting(&scene, "new-", GUEST);
    move_to(&scene, &mut qmp, "new-", &mut new_qmp);
    assert_eq!(qmp.migration().downtime, None);
    assert_eq!(new_qmp.run_state(), RunState::Paused);
    let beats = Beats::of(new.pid());
    let before = beats.count(0);
    assert_eq!(new_qmp.run_state(), RunState::Paused);
    assert_eq!(beats.count(0), before);
    assert_eq!(before, Beats::of(old.pid()).count(0));
    new_qmp.done(Command::Cont);
    is_running(&mut new_qmp, &beats, 1);
    assert!(!scene.path("new-main").exists(), "the socket's file is left");
}

pub fn paused_option_keeps_the_guest_stopped() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    is_running(&mut qmp, &Beats::of(old.pid()), 1);
    let (new, mut new_qmp) = waiting(&scene, "new-", &format!("{GUEST} --paused"));
    move_to(&scene, &mut qmp, "new-", &mut new_qmp);
    assert_eq!(new_qmp.run_state(), RunState::Paused);
    new_qmp.done(Command::Cont);
    is_running(&mut new_qmp, &Beats::of(new.pid()), 1);
}

pub fn guest_moves_twice() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = vm.qmp();
    is_running(&mut qmp, &Beats::of(vm.pid()), 1);
    for (name, keeper) in [("new-", "off"), ("newer-", "on"), ("newest-", "update")] {
        let (new, mut next) = waiting(&scene, name, &format!("{GUEST} --keeper {keeper}"));
        move_to(&scene, &mut qmp, name, &mut next);
        is_running(&mut next, &Beats::of(new.pid()), 1);
        qmp.done(Command::Quit);
        assert_eq!(vm.end().code(), Some(0));
        (vm, qmp) = (new, next);
    }
}

pub fn deferred_guest_arrives() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    is_running(&mut qmp, &Beats::of(old.pid()), 1);
    let mut new = scene.start_beside("new-", &format!("{GUEST} --incoming defer"), |_| {});
    let mut new_qmp = new.qmp();
    assert_eq!(new_qmp.run_state(), RunState::Inmigrate);
    let incoming = |uri: &str| {
        Command::MigrateIncoming(MigrateIncomingArgs {
            uri: Some(uri.replace("DIR", scene.dir())),
            exit_on_error: Some(false),
            ..MigrateIncomingArgs::default()
        })
    };
    new_qmp.execute(incoming("file:DIR/missing")).expect_err("there is no such file");
    new_qmp.execute(incoming("unix:DIR/missing/main")).expect_err("there is no such directory");
    assert_eq!(new_qmp.run_state(), RunState::Inmigrate);
    new_qmp.done(incoming("unix:DIR/new-main"));
    assert_eq!(migrate(&scene, &mut qmp, "new-"), MigrationStatus::Completed);
    until("the guest in the new process", || match new_qmp.run_state() {
        RunState::Running => Ok(()),
        other => Err(other),
    });
    is_running(&mut new_qmp, &Beats::of(new.pid()), 1);
}

/// No other mode can keep it.
pub fn private_ram_moves() {
    let scene = Scene::new();
    let private = "--kernel DIR/heartbeat --memory 16M,share=off";
    let mut old = scene.start(private);
    let mut qmp = old.qmp();
    let (_new, mut new_qmp) = waiting(&scene, "new-", private);
    move_to(&scene, &mut qmp, "new-", &mut new_qmp);
    assert_eq!(new_qmp.run_state(), RunState::Running);
}

/// Memory that the guest has never used is neither read nor written.
pub fn unused_ram_stays_unused() {
    let scene = Scene::new();
    let large = "--kernel DIR/heartbeat --memory 1G";
    let mut old = scene.start(large);
    let mut qmp = old.qmp();
    is_running(&mut qmp, &Beats::of(old.pid()), 1);
    let (new, mut new_qmp) = waiting(&scene, "new-", large);
    move_to(&scene, &mut qmp, "new-", &mut new_qmp);
    for vm in [&old, &new] {
        let used = Beats::of(vm.pid()).ram().metadata().unwrap().blocks() * 512;
        assert!(used < 64 << 20, "{} KiB", used >> 10);
    }
}

/// Another program could not continue it, so nothing must execute one: a slow migration only fails.
pub fn no_keeper_waits_for_private_ram() {
    let scene = Scene::new();
    let fifo = fifo(&scene);
    for keeper in ["update", "on"] {
        let private = "--kernel DIR/heartbeat --memory 16M,share=off";
        let arguments = format!("{private} --keeper {keeper} --failpoint commit=hold=DIR/fifo");
        let mut old = scene.start(&arguments);
        let mut qmp = old.qmp();
        begin(&scene, &mut qmp, "file:DIR/state").expect("the snapshot is accepted");
        let held = File::options().write(true).open(&fifo).unwrap();
        assert_eq!(process::children(old.pid()), [0; 0], "{keeper}");
        let timers = std::fs::read_to_string(format!("/proc/{}/timers", old.pid())).unwrap();
        assert_eq!(timers, "", "{keeper}");
        drop(held);
        assert_eq!(outcome(&mut qmp).0, MigrationStatus::Completed, "{keeper}");
        qmp.done(Command::Quit);
        old.end();
    }
}

pub fn ram_file_is_filled() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    is_running(&mut qmp, &Beats::of(old.pid()), 1);
    // What it holds does not count.
    scene.write("ram", vec![0xa5; 16 << 20]);
    let file = "--kernel DIR/heartbeat --memory 16M,file=DIR/ram";
    let (new, mut new_qmp) = waiting(&scene, "new-", file);
    qmp.done(Command::Stop);
    move_to(&scene, &mut qmp, "new-", &mut new_qmp);
    let whole = |pid: u32| {
        let mut bytes = vec![0; 16 << 20];
        std::os::unix::fs::FileExt::read_exact_at(Beats::of(pid).ram(), &mut bytes, 0).unwrap();
        bytes
    };
    let old_ram = whole(old.pid());
    assert!(std::fs::read(scene.path("ram")).unwrap() == old_ram, "RAM differs");
    drop(new);
}

pub fn moved_guest_can_be_reset_and_updated() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    is_running(&mut qmp, &Beats::of(old.pid()), 1);
    let (new, mut new_qmp) = waiting(&scene, "new-", GUEST);
    move_to(&scene, &mut qmp, "new-", &mut new_qmp);
    let beats = Beats::of(new.pid());
    new_qmp.done(Command::SystemReset);
    is_running(&mut new_qmp, &beats, 1);
    let command = new.command_again("file:DIR/state");
    let waits = command.iter().position(|word| word == "--incoming").expect("it waits");
    let alone: Vec<_> = command[..waits].iter().chain(&command[waits + 2..]).cloned().collect();
    assert_eq!(new_qmp.update(&alone, &new.state_file()), MigrationStatus::Completed);
    is_running(&mut new_qmp, &beats, 1);
}

pub fn sent_guest_continues_here() {
    let scene = Scene::new();
    let mut old = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let (mut new, mut new_qmp) = waiting(&scene, "new-", GUEST);
    move_to(&scene, &mut qmp, "new-", &mut new_qmp);
    let again = begin(&scene, &mut qmp, "unix:DIR/new-main").expect_err("the guest is elsewhere");
    assert!(again.desc.contains("saved or migrated"), "{}", again.desc);
    new_qmp.done(Command::Quit);
    new.end();
    qmp.done(Command::Cont);
    is_running(&mut qmp, &beats, 1);
    until("a keeper", || match process::children(old.pid()).len() {
        1 => Ok(()),
        other => Err(other),
    });
    can_move(&scene, &mut qmp);
}

pub fn sent_guest_can_be_reset_here() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let (_new, mut new_qmp) = waiting(&scene, "new-", GUEST);
    move_to(&scene, &mut qmp, "new-", &mut new_qmp);
    qmp.done(Command::SystemReset);
    assert_eq!(qmp.run_state(), RunState::Prelaunch);
    qmp.done(Command::Cont);
    is_running(&mut qmp, &beats, 1);
}
