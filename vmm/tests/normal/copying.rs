//! RAM that is copied while the guest runs.

use std::mem::offset_of;
use std::os::unix::fs::FileExt;

use cpr_qmp::command::Command;
use cpr_qmp::event::EventKind;
use cpr_qmp::migration::{MigrationParameters, MigrationStatus};
use cpr_qmp::run_state::RunState;
use guest_images::mailbox::{Damage, MAILBOX_GPA, Mailbox, damage_state};

use crate::steps::*;
use crate::support::{Beats, Scene, until};

/// A guest that writes all of its RAM, and verifies it.
pub const PATTERN: &str = "--kernel DIR/pattern --memory 32M --cpus 2 --cmdline cpus=2";

pub fn with_pattern() -> Scene {
    let scene = Scene::new();
    scene.write("pattern", guest_images::guest("pattern").expect("it is embedded").elf);
    scene
}

fn word(beats: &Beats, offset: usize) -> u64 {
    let mut bytes = [0; 8];
    beats.ram().read_exact_at(&mut bytes, MAILBOX_GPA + offset as u64).expect("RAM has this page");
    u64::from_le_bytes(bytes)
}

/// Waits until the guest has verified every page.
pub fn is_whole(beats: &Beats) {
    let before = word(beats, offset_of!(Mailbox, sweeps));
    until("two sweeps over RAM", || {
        let damage = word(beats, offset_of!(Mailbox, damage) + offset_of!(Damage, state)) as u32;
        assert_eq!(damage, damage_state::NONE, "the guest found damage");
        match word(beats, offset_of!(Mailbox, sweeps)) {
            now if now >= before + 2 => Ok(()),
            now => Err(now),
        }
    });
}

pub fn ram_keeps_its_pattern() {
    let scene = with_pattern();
    let mut vm = scene.start(PATTERN);
    let mut qmp = vm.qmp();
    // However long the rest takes: the guest writes much of its RAM meanwhile.
    let any = MigrationParameters { downtime_limit: Some(10_000), ..bandwidth(0) };
    is_whole(&Beats::of(vm.pid()));
    for name in ["a-", "b-", "c-"] {
        let (new, mut next) = waiting(&scene, name, PATTERN);
        set(&mut qmp, any.clone());
        move_to(&scene, &mut qmp, name, &mut next);
        let passes = qmp.migration().ram.expect("RAM was copied").dirty_sync_count;
        assert!(passes >= 2, "{passes} passes");
        qmp.done(Command::Quit);
        assert_eq!(vm.end().code(), Some(0));
        is_whole(&Beats::of(new.pid()));
        (vm, qmp) = (new, next);
    }
}

/// A new VM has no log of what the guest wrote before.
pub fn reset_while_copying_copies_all_again() {
    let scene = with_pattern();
    let mut old = scene.start(PATTERN);
    let mut qmp = old.qmp();
    is_whole(&Beats::of(old.pid()));
    let (new, mut next) = waiting(&scene, "new-", PATTERN);
    set(&mut qmp, bandwidth(SLOW));
    begin(&scene, &mut qmp, "unix:DIR/new-main").expect("the migration is accepted");
    copying(&mut qmp);
    qmp.done(Command::SystemReset);
    set(&mut qmp, MigrationParameters { downtime_limit: Some(10_000), ..bandwidth(0) });
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Completed, "{:?}", qmp.migration());
    outcome(&mut next);
    is_whole(&Beats::of(new.pid()));
}

pub fn bandwidth_is_limited_and_can_be_raised() {
    let scene = with_pattern();
    let mut old = scene.start(PATTERN);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_whole(&beats);
    let (new, mut next) = waiting(&scene, "new-", PATTERN);
    set(&mut qmp, bandwidth(SLOW));
    begin(&scene, &mut qmp, "unix:DIR/new-main").expect("the migration is accepted");
    copying(&mut qmp);
    // The guest runs on, and clients are served.
    is_whole(&beats);
    let info = qmp.migration();
    assert_eq!(info.status, Some(MigrationStatus::Active));
    let ram = info.ram.expect("RAM is being copied");
    assert!(ram.remaining > ram.total / 2, "{ram:?}");
    assert_eq!(next.run_state(), RunState::Inmigrate);
    set(&mut qmp, MigrationParameters { downtime_limit: Some(10_000), ..bandwidth(0) });
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Completed);
    outcome(&mut next);
    is_whole(&Beats::of(new.pid()));
}

pub fn guest_that_writes_faster_than_it_is_copied_runs_on() {
    let scene = with_pattern();
    let mut old = scene.start(PATTERN);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_whole(&beats);
    let (_new, mut next) = waiting(&scene, "new-", PATTERN);
    // Each pass takes so long that the guest gets to write, however busy the host is.
    set(&mut qmp, MigrationParameters { downtime_limit: Some(0), ..bandwidth(16 << 20) });
    begin(&scene, &mut qmp, "unix:DIR/new-main").expect("the migration is accepted");
    let fourth = |event| matches!(event, EventKind::MigrationPass { pass: 4 }).then_some(());
    qmp.event("a fourth pass", fourth);
    let info = qmp.migration();
    assert_eq!(info.status, Some(MigrationStatus::Active));
    assert!(info.expected_downtime.is_some(), "{info:?}");
    assert!(info.ram.is_some_and(|ram| ram.dirty_pages_rate > 0), "{info:?}");
    is_whole(&beats);
    set(&mut qmp, MigrationParameters { downtime_limit: Some(10_000), ..bandwidth(0) });
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Completed);
    outcome(&mut next);
}

pub fn cancelled_copy_leaves_the_guest() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let (mut new, _next) = waiting(&scene, "new-", GUEST);
    set(&mut qmp, bandwidth(1));
    begin(&scene, &mut qmp, "unix:DIR/new-main").expect("the migration is accepted");
    copying(&mut qmp);
    let second = begin(&scene, &mut qmp, "unix:DIR/new-main");
    assert!(second.expect_err("there is one already").desc.contains("in progress"));
    qmp.done(Command::MigrateCancel);
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Cancelled);
    assert_eq!(new.end().code(), Some(1), "{}", new.stderr());
    is_running(&mut qmp, &beats, 1);
    can_move(&scene, &mut qmp);
}

pub fn stopping_the_guest_completes_the_copy() {
    let scene = with_pattern();
    let mut old = scene.start(PATTERN);
    let mut qmp = old.qmp();
    is_whole(&Beats::of(old.pid()));
    let (new, mut next) = waiting(&scene, "new-", PATTERN);
    set(&mut qmp, MigrationParameters { downtime_limit: Some(0), ..bandwidth(SLOW) });
    begin(&scene, &mut qmp, "unix:DIR/new-main").expect("the migration is accepted");
    copying(&mut qmp);
    qmp.done(Command::Stop);
    set(&mut qmp, bandwidth(0));
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Completed);
    outcome(&mut next);
    assert_eq!(next.run_state(), RunState::Paused);
    next.done(Command::Cont);
    is_whole(&Beats::of(new.pid()));
}

pub fn bad_parameters_are_refused() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let too_long = MigrationParameters { downtime_limit: Some(2_000_001), ..bandwidth(0) };
    let refused = qmp.execute(Command::MigrateSetParameters(too_long));
    let refused = refused.expect_err("no such downtime").desc;
    insta::assert_snapshot!(refused, @"Parameter 'downtime_limit' expects an integer in the range of 0 to 2000000 ms");
    let now: MigrationParameters = qmp.query(Command::QueryMigrateParameters);
    assert_eq!((now.max_bandwidth, now.downtime_limit), (Some(128 << 20), Some(300)));
}
