//! Failures around the commit: the guest runs in one process, or stands in both.

use std::fs::File;
use std::time::Duration;

use cpr_qmp::command::Command;
use cpr_qmp::event::Continued;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use nix::sys::signal::Signal;

use crate::steps::*;
use crate::support::{Beats, Qmp, Scene, Vm, process};
use crate::transfer::fifo;

/// Migrates from an old process that is held once the new one has loaded the guest.
fn held<'a>(scene: &'a Scene, keeper: &str) -> (Vm<'a>, Qmp, Vm<'a>, Qmp, File) {
    let fifo = fifo(scene);
    let arguments = format!("{GUEST} --keeper {keeper} --failpoint commit=hold=DIR/fifo");
    let mut old = scene.start(&arguments);
    let mut qmp = old.qmp();
    is_running(&mut qmp, &Beats::of(old.pid()), 1);
    let (new, next) = waiting(scene, "new-", GUEST);
    begin(scene, &mut qmp, "unix:DIR/new-main").expect("the migration is accepted");
    // Opens once the old process has reached the fail point.
    let held = File::options().write(true).open(fifo).unwrap();
    (old, qmp, new, next, held)
}

/// Waits until the new process has noticed that it must not run the guest by itself.
fn stands(next: &mut Qmp) {
    assert_eq!(outcome(next).0, MigrationStatus::Failed);
    assert_eq!(next.run_state(), RunState::Paused);
    let why = next.migration().error_desc.expect("a failure says why");
    let expected = "the guest is loaded, but the old VMM did not say that it has given it up (";
    assert!(why.starts_with(expected) && why.ends_with("continue it here with cont"), "{why}");
}

/// Without a keeper, nothing but the new process has the guest.
pub fn end_of_the_old_process_before_the_commit_leaves_a_stopped_guest() {
    let scene = Scene::new();
    let (mut old, _qmp, new, mut next, held) = held(&scene, "off");
    process::send(old.pid(), Signal::SIGKILL);
    old.end();
    drop(held);
    stands(&mut next);
    next.done(Command::Cont);
    is_running(&mut next, &Beats::of(new.pid()), 1);
}

pub fn keeper_and_new_process_do_not_both_run_the_guest() {
    let scene = Scene::new();
    let (old, mut qmp, new, mut next, held) = held(&scene, "on");
    let beats = Beats::of(old.pid());
    process::send(old.pid(), Signal::SIGKILL);
    let continued: Continued = qmp.event_data(Continued::NAME);
    assert_eq!(continued.former_pid, old.pid() as i32);
    is_running(&mut qmp, &beats, 1);
    drop(held);
    stands(&mut next);
    let there = Beats::of(new.pid());
    let before = there.count(0);
    is_running(&mut qmp, &beats, 1);
    assert_eq!(there.count(0), before);
}

/// The new process hangs past the deadline, and must not run the guest when it continues.
pub fn late_process_does_not_get_the_guest() {
    let scene = Scene::new();
    let fifo = fifo(&scene);
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let (mut new, _next) =
        waiting(&scene, "new-", &format!("{GUEST} --failpoint commit=hold=DIR/fifo"));
    set(&mut qmp, deadline(2000));
    begin(&scene, &mut qmp, "unix:DIR/new-main").expect("the migration is accepted");
    let held = File::options().write(true).open(fifo).unwrap();
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Failed);
    let why = qmp.migration().error_desc.expect("a failure says why");
    assert!(why.contains("in time"), "{why}");
    is_running(&mut qmp, &beats, 1);
    drop(held);
    assert_eq!(new.end().code(), Some(1), "{}", new.stderr());
    is_running(&mut qmp, &beats, 1);
    can_move(&scene, &mut qmp);
}

pub fn keeper_does_not_revive_a_sent_guest() {
    let scene = Scene::new();
    let mut old = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = old.qmp();
    is_running(&mut qmp, &Beats::of(old.pid()), 1);
    let (new, mut next) = waiting(&scene, "new-", &format!("{GUEST} --keeper on"));
    move_to(&scene, &mut qmp, "new-", &mut next);
    assert_eq!(process::children(old.pid()), [0; 0]);
    process::send(old.pid(), Signal::SIGKILL);
    old.end();
    // The new process has a keeper of its own.
    let beats = Beats::of(new.pid());
    is_running(&mut next, &beats, 1);
    process::send(new.pid(), Signal::SIGKILL);
    let continued: Continued = next.event_data(Continued::NAME);
    assert_eq!(continued.former_pid, new.pid() as i32);
    is_running(&mut next, &beats, 1);
}

/// How often [`kills_at_any_moment_lose_no_guest`] kills.
const KILLS: u32 = 16;
/// The kills are spread over this time from `migrate` on.
const KILLED_WITHIN: Duration = Duration::from_millis(120);

/// Kills the new process at different moments. The old one continues the guest, or an operator does.
pub fn kills_at_any_moment_lose_no_guest() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    for round in 0..KILLS {
        let name = format!("n{round}-");
        let (mut new, _next) = waiting(&scene, &name, GUEST);
        begin(&scene, &mut qmp, &format!("unix:DIR/{name}main")).expect("it is accepted");
        // The moment of the kill.
        std::thread::sleep(KILLED_WITHIN * round / KILLS);
        process::send(new.pid(), Signal::SIGKILL);
        new.end();
        let (ended, _) = outcome(&mut qmp);
        if qmp.run_state() == RunState::Postmigrate {
            // It had the guest.
            qmp.done(Command::Cont);
        } else {
            assert_eq!(ended, MigrationStatus::Failed, "round {round}");
        }
        is_running(&mut qmp, &beats, 1);
        // A killed process leaves it.
        let _ = std::fs::remove_file(scene.path(&format!("{name}main")));
    }
    can_move(&scene, &mut qmp);
}
