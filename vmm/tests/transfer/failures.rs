//! Transfers that fail, and processes that die.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use cpr_qmp::command::Command;
use cpr_qmp::event::{Continued, EventKind};
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use nix::sys::signal::Signal;

use crate::steps::*;
use crate::support::{Beats, Scene, process};

pub fn other_machine_is_refused_by_name() {
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

pub fn channels_are_refused_by_name() {
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
pub fn failure_leaves_the_guest(point: &str, action: &str) {
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

pub fn death_of_the_old_process_does_not_matter() {
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

pub fn keeper_does_not_revive_a_moved_guest() {
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
    let continued: Continued = new_qmp.event_data(Continued::NAME);
    assert_eq!(continued.former_pid, new.pid() as i32);
    is_running(&mut new_qmp, &beats, 1);
}

/// The old process dies while the new one has the whole state, but has not claimed the guest.
pub fn keeper_continues_a_guest_that_was_not_claimed() {
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
    let continued: Continued = qmp.event_data(Continued::NAME);
    assert_eq!(continued.former_pid, old.pid() as i32);
    is_running(&mut qmp, &beats, 1);
    drop(held);
    assert!(!new.end().success());
    assert!(new.stderr().contains("has taken it back"), "{}", new.stderr());
    is_running(&mut qmp, &beats, 1);
}

/// The new process hangs past the deadline, and must not run the guest when it continues.
pub fn late_process_does_not_get_the_guest() {
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
pub fn crashed_handover_leaves_the_guest() {
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
            begin(&scene, &mut qmp, "new-", "unix:DIR/new-main").expect("it is accepted");
            let (ended, mut events) = outcome(&mut qmp);
            assert_eq!(ended, MigrationStatus::Failed, "{point} {action} {keeper}");
            is_running(&mut qmp, &beats, 1);
            events.extend(qmp.take_events());
            let count = |wanted| events.iter().filter(|event| **event == wanted).count();
            assert_eq!(count(EventKind::Stop), count(EventKind::Resume), "{events:?}");
            assert!(!new.end().success());
            is_running(&mut qmp, &beats, 1);
            can_move(&scene, &mut qmp, &beats);
        }
    }
}

/// The old process fails while the guest runs, before it offers it: the new one waits for another.
pub fn failure_before_the_offer_leaves_the_guest() {
    for action in ["panic", "errno=EIO"] {
        for keeper in ["on", "update", "off"] {
            let scene = Scene::new();
            let arguments = format!("{GUEST} --keeper {keeper} --failpoint publish={action}");
            let mut old = scene.start(&arguments);
            let mut qmp = old.qmp();
            let beats = Beats::of(old.pid());
            is_running(&mut qmp, &beats, 1);
            let (_new, mut new_qmp) = waiting(&scene, "new-", GUEST);
            let ended = transfer(&scene, &mut qmp, "new-");
            assert_eq!(ended, MigrationStatus::Failed, "{action} {keeper}");
            is_running(&mut qmp, &beats, 1);
            assert_eq!(new_qmp.run_state(), RunState::Inmigrate);
            can_move(&scene, &mut qmp, &beats);
        }
    }
}

pub fn cancelled_transfer_leaves_the_guest() {
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
    // The refusal does not end the keeper, which knows that the guest is offered.
    assert_eq!(process::children(old.pid()).len(), 1);
    qmp.done(Command::MigrateCancel);
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Cancelled);
    assert_eq!(qmp.migration().status, Some(MigrationStatus::Cancelled));
    drop(held);
    assert_eq!(new.end().code(), Some(1));
    assert!(new.stderr().contains("the transfer was cancelled"), "{}", new.stderr());
    is_running(&mut qmp, &beats, 1);
    can_move(&scene, &mut qmp, &beats);
}

pub fn ended_transfer_ends_the_new_process() {
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

pub fn foreign_and_silent_peers_are_dropped() {
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

pub fn wrong_peers_leave_the_guest() {
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

pub fn end_signals_end_a_waiting_process() {
    let scene = Scene::new();
    let before = scene.files();
    let (mut new, _) = waiting(&scene, "new-", GUEST);
    process::send(new.pid(), Signal::SIGTERM);
    assert_eq!(new.end().code(), Some(0));
    fs::remove_file(scene.path("new-stderr")).unwrap();
    assert_eq!(scene.files(), before);
}

/// How often [`kills_at_any_moment_lose_no_guest`] kills, unless this variable says otherwise.
const KILLS: (&str, u32) = ("CPR_TRANSFER_KILLS", 16);
/// The kills are spread over this time from `migrate` on, most of them early.
const KILLED_WITHIN: Duration = Duration::from_millis(40);

/// Kills the new process at different moments of a transfer. Wherever the guest is then, it runs.
pub fn kills_at_any_moment_lose_no_guest() {
    let scene = Scene::new();
    let arguments = format!("{GUEST} --keeper on");
    let mut old = scene.start(&arguments);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    let mut vms = vec![old];
    let mut moved = 0;
    let kills = std::env::var(KILLS.0).map_or(KILLS.1, |kills| kills.parse().expect(KILLS.0));
    for round in 0..kills {
        let name = format!("n{round}-");
        // A process that was continued has reported that as well.
        qmp.take_events();
        let (new, mut new_qmp) = waiting(&scene, &name, &arguments);
        begin(&scene, &mut qmp, &name, &format!("unix:DIR/{name}main")).expect("it is accepted");
        // The moment of the kill.
        let moment = f64::from(round) / f64::from(kills);
        std::thread::sleep(KILLED_WITHIN.mul_f64(moment.powi(3)));
        process::send(new.pid(), Signal::SIGKILL);
        if outcome(&mut qmp).0 == MigrationStatus::Completed {
            let continued: Continued = new_qmp.event_data(Continued::NAME);
            assert_eq!(continued.former_pid, new.pid() as i32);
            assert_eq!(qmp.run_state(), RunState::Postmigrate);
            (qmp, moved) = (new_qmp, moved + 1);
        }
        is_running(&mut qmp, &beats, 1);
        vms.push(new);
    }
    println!("{moved} of {kills} guests had moved");
}
