//! Transfers that succeed.

use cpr_qmp::command::Command;
use cpr_qmp::event::EventKind;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;

use crate::steps::*;
use crate::support::{Beats, Scene, process, until};

pub fn running_guest_moves(cpus: usize) {
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

pub fn stopped_guest_stays_stopped() {
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

pub fn paused_option_keeps_the_guest_stopped() {
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

pub fn guest_moves_twice() {
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

pub fn guest_moves_through_a_file() {
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

pub fn serial_client_stays_connected() {
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

pub fn other_serial_port_is_opened() {
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
    assert_eq!(qmp.run_state(), RunState::Postmigrate);
    assert!(!scene.path("serial").exists());
}

pub fn moved_guest_can_be_reset_and_updated() {
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
