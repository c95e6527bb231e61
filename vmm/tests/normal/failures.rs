//! Migrations that fail before the commit. The guest runs on in the old process.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use cpr_qmp::event::{Continued, EventKind};
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use nix::sys::signal::Signal;

use crate::steps::*;
use crate::support::{Beats, Qmp, Scene, process};

fn why(qmp: &mut Qmp) -> String {
    qmp.migration().error_desc.expect("a failure says why")
}

fn snapshot(scene: &Scene, name: &str, texts: &[String]) {
    let texts: Vec<_> = texts.iter().map(|text| scene.redact(text.trim_end())).collect();
    insta::with_settings!({ prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(name, texts.join("\n"));
    });
}

/// The old process fails.
pub fn failure_here_leaves_the_guest(point: &str, action: &str) {
    for keeper in ["update", "off"] {
        let scene = Scene::new();
        let arguments = format!("{GUEST} --keeper {keeper} --failpoint {point}={action}");
        let mut old = scene.start(&arguments);
        let mut qmp = old.qmp();
        let beats = Beats::of(old.pid());
        is_running(&mut qmp, &beats, 1);
        let (mut new, _next) = waiting(&scene, "new-", GUEST);
        begin(&scene, &mut qmp, "unix:DIR/new-main").expect("the migration is accepted");
        let (ended, mut events) = outcome(&mut qmp);
        assert_eq!(ended, MigrationStatus::Failed, "{keeper}");
        is_running(&mut qmp, &beats, 1);
        events.extend(qmp.take_events());
        let count = |wanted| events.iter().filter(|event| **event == wanted).count();
        assert_eq!(count(EventKind::Stop), count(EventKind::Resume), "{keeper}: {events:?}");
        // It has loaded everything by then, and is told nothing.
        match (point, action) {
            ("commit", "segv" | "panic") => {}
            _ => assert_eq!(new.end().code(), Some(1), "{}", new.stderr()),
        }
        is_running(&mut qmp, &beats, 1);
        can_move(&scene, &mut qmp);
    }
}

/// The new process fails.
pub fn failure_there_leaves_the_guest(point: &str, action: &str) {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let (mut new, _next) =
        waiting(&scene, "new-", &format!("{GUEST} --failpoint {point}={action}"));
    assert_eq!(migrate(&scene, &mut qmp, "new-"), MigrationStatus::Failed);
    assert!(!new.end().success());
    let text = why(&mut qmp);
    assert!(text.starts_with("cannot migrate the guest: "), "{text}");
    is_running(&mut qmp, &beats, 1);
    can_move(&scene, &mut qmp);
}

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
        let (_new, mut next) = waiting(&scene, name, other);
        assert_eq!(migrate(&scene, &mut qmp, name), MigrationStatus::Failed);
        texts.push(why(&mut qmp));
        // It waits for another guest.
        assert_eq!(next.run_state(), RunState::Inmigrate);
        is_running(&mut qmp, &beats, 1);
    }
    snapshot(&scene, "normal_other_machine", &texts);
    can_move(&scene, &mut qmp);
}

pub fn channels_are_refused_by_name() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    scene.write("file", "not a socket");
    let uris = [
        "unix:DIR/unused",
        "unix:DIR/file",
        "tcp:host.example:4444",
        "exec:cat",
        "file:DIR/nowhere/state",
        "file:DIR",
        "file:DIR/state,offset=4096",
    ];
    let refused = |result: Result<(), QmpError>| result.expect_err("it is refused").desc;
    let mut texts: Vec<_> = uris.iter().map(|uri| refused(begin(&scene, &mut qmp, uri))).collect();
    assert_eq!(qmp.migration().status, None);
    // No process listens on the first port.
    begin(&scene, &mut qmp, "tcp:127.0.0.1:1").expect("the answer comes before the connection");
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Failed);
    texts.push(why(&mut qmp));
    snapshot(&scene, "normal_channels", &texts);
    is_running(&mut qmp, &Beats::of(old.pid()), 1);
    can_move(&scene, &mut qmp);
}

pub fn wrong_peers_leave_the_guest() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    let mut texts = Vec::new();
    for hello in [b"GET / HTTP/1.0\r\n\r\n0123456789012345678901234567890" as &[u8], b"CPRX", b""] {
        let listener = UnixListener::bind(scene.path("peer")).unwrap();
        begin(&scene, &mut qmp, "unix:DIR/peer").expect("the migration is accepted");
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(hello).unwrap();
        drop(peer);
        assert_eq!(outcome(&mut qmp).0, MigrationStatus::Failed);
        texts.push(why(&mut qmp));
        is_running(&mut qmp, &beats, 1);
        fs::remove_file(scene.path("peer")).unwrap();
    }
    snapshot(&scene, "normal_wrong_peers", &texts);
    can_move(&scene, &mut qmp);
}

pub fn foreign_and_silent_peers_are_dropped() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let (new, mut next) = waiting(&scene, "new-", GUEST);
    for text in [b"GET / HTTP/1.0\r\n\r\n" as &[u8], &[0; 100], b""] {
        let mut peer = UnixStream::connect(scene.path("new-main")).unwrap();
        peer.write_all(text).unwrap();
        drop(peer);
        assert_eq!(next.run_state(), RunState::Inmigrate);
    }
    move_to(&scene, &mut qmp, "new-", &mut next);
    is_running(&mut next, &Beats::of(new.pid()), 1);
    assert!(new.stderr().contains("normal_peer_dropped"), "{}", new.stderr());
}

/// A relay between both processes cuts their connection after so many bytes.
pub fn cut_connections_leave_the_guest() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    for (round, bytes) in [1, 39, 60, 100, 150, 1000, 20_000].into_iter().enumerate() {
        let name = format!("n{round}-");
        let (mut new, _next) = waiting(&scene, &name, GUEST);
        let listener = UnixListener::bind(scene.path("relay")).unwrap();
        begin(&scene, &mut qmp, "unix:DIR/relay").expect("the migration is accepted");
        let (mut from, _) = listener.accept().unwrap();
        let mut to = UnixStream::connect(scene.path(&format!("{name}main"))).unwrap();
        let (mut reader, mut writer) = (to.try_clone().unwrap(), from.try_clone().unwrap());
        let back = std::thread::spawn(move || std::io::copy(&mut reader, &mut writer));
        std::io::copy(&mut Read::by_ref(&mut from).take(bytes), &mut to).unwrap();
        for end in [&from, &to] {
            // The other end may have gone already.
            let _ = end.shutdown(std::net::Shutdown::Both);
        }
        back.join().unwrap().ok();
        assert_eq!(outcome(&mut qmp).0, MigrationStatus::Failed, "{bytes}");
        is_running(&mut qmp, &beats, 1);
        fs::remove_file(scene.path("relay")).unwrap();
        // What had begun to arrive cannot be completed.
        if bytes >= 1000 {
            assert_eq!(new.end().code(), Some(1), "{bytes}");
        }
    }
    can_move(&scene, &mut qmp);
}

pub fn killed_old_process_is_continued_by_its_keeper() {
    let scene = Scene::new();
    let mut old = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let (mut new, _next) = waiting(&scene, "new-", GUEST);
    set(&mut qmp, bandwidth(SLOW));
    begin(&scene, &mut qmp, "unix:DIR/new-main").expect("the migration is accepted");
    copying(&mut qmp);
    process::send(old.pid(), Signal::SIGKILL);
    let continued: Continued = qmp.event_data(Continued::NAME);
    assert_eq!(continued.former_pid, old.pid() as i32);
    is_running(&mut qmp, &beats, 1);
    assert_eq!(new.end().code(), Some(1), "{}", new.stderr());
    assert_eq!(qmp.migration().status, Some(MigrationStatus::Failed));
    qmp.take_events();
    can_move(&scene, &mut qmp);
}
