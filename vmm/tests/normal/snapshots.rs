//! Snapshots: RAM and state in a file.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use cpr_qmp::command::{Command, MigrateIncomingArgs};
use cpr_qmp::event::EventKind;
use cpr_qmp::migration::{MigrationParameters, MigrationStatus};
use cpr_qmp::run_state::RunState;

use crate::copying::{PATTERN, is_whole, with_pattern};
use crate::steps::*;
use crate::support::{Beats, Qmp, Scene, Vm};

/// Writes a snapshot of the guest to `DIR/state`.
fn save(scene: &Scene, qmp: &mut Qmp) {
    begin(scene, qmp, "file:DIR/state").expect("the snapshot is accepted");
    let (ended, _) = outcome(qmp);
    assert_eq!(ended, MigrationStatus::Completed, "{:?}", qmp.migration().error_desc);
    assert_eq!(qmp.run_state(), RunState::Postmigrate);
}

fn loaded<'a>(scene: &'a Scene, name: &str, arguments: &str) -> (Vm<'a>, Qmp) {
    let arguments = format!("{arguments} --incoming file:DIR/state");
    let mut vm = scene.start_beside(name, &arguments, |_| {});
    let qmp = vm.qmp();
    (vm, qmp)
}

/// Starts a process with the snapshot, which it must refuse; returns why.
fn refused(scene: &Scene, arguments: &str) -> String {
    let arguments = format!("{arguments} --incoming file:DIR/state");
    let mut vm = scene.start_beside("refused-", &arguments, |_| {});
    assert_eq!(vm.end().code(), Some(1), "{}", vm.stderr());
    vm.stderr().trim_end().to_owned()
}

pub fn snapshot_continues_here_and_there() {
    let scene = Scene::new();
    let arguments = format!("{GUEST} --cpus 2 --cmdline cpus=2");
    let mut old = scene.start(&arguments);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 2);
    save(&scene, &mut qmp);
    let then = beats.count(0);
    qmp.done(Command::Cont);
    is_running(&mut qmp, &beats, 2);
    // As often as one likes: the file is a copy.
    for name in ["a-", "b-"] {
        let (new, mut next) = loaded(&scene, name, &format!("{arguments} --paused"));
        assert_eq!(next.run_state(), RunState::Paused);
        let there = Beats::of(new.pid());
        assert_eq!(there.count(0), then);
        next.done(Command::Cont);
        is_running(&mut next, &there, 2);
    }
    is_running(&mut qmp, &beats, 2);
}

/// RAM is read while the guest runs.
pub fn snapshot_keeps_the_pattern() {
    let scene = with_pattern();
    let mut old = scene.start(PATTERN);
    let mut qmp = old.qmp();
    is_whole(&Beats::of(old.pid()));
    save(&scene, &mut qmp);
    let arguments = format!("{PATTERN} --incoming defer --log info");
    let mut new = scene.start_beside("new-", &arguments, |_| {});
    let mut next = new.qmp();
    with_events(&mut next);
    let uri = Some("file:DIR/state".replace("DIR", scene.dir()));
    next.done(Command::MigrateIncoming(MigrateIncomingArgs {
        uri,
        ..MigrateIncomingArgs::default()
    }));
    let (ended, events) = outcome(&mut next);
    assert_eq!(ended, MigrationStatus::Completed);
    use MigrationStatus::{Active, Completed, Setup};
    let expected = [status(Setup), status(Active), EventKind::Resume, status(Completed)];
    assert_eq!(events, expected);
    // Root may always use userfaultfd.
    let on_demand = new.stderr().contains("normal_ram_on_demand");
    assert!(on_demand || !nix::unistd::geteuid().is_root(), "{}", new.stderr());
    // The file is not needed any more.
    fs::remove_file(scene.path("state")).unwrap();
    is_whole(&Beats::of(new.pid()));
    // It can be migrated like any other.
    let (other, mut last) = waiting(&scene, "last-", PATTERN);
    set(&mut next, MigrationParameters { downtime_limit: Some(10_000), ..bandwidth(0) });
    move_to(&scene, &mut next, "last-", &mut last);
    is_whole(&Beats::of(other.pid()));
}

/// A RAM file, which may hold something else, gets exactly the guest's RAM.
pub fn snapshot_fills_a_ram_file() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    save(&scene, &mut qmp);
    let mut ram = vec![0; 16 << 20];
    beats.ram().read_exact_at(&mut ram, 0).unwrap();
    let file = "--kernel DIR/heartbeat --memory 16M,file=DIR/ram --paused";
    for content in [None, Some(vec![0xa5; 16 << 20])] {
        let _ = fs::remove_file(scene.path("ram"));
        content.into_iter().for_each(|content| drop(scene.write("ram", content)));
        let (_new, mut next) = loaded(&scene, "new-", file);
        assert_eq!(next.run_state(), RunState::Paused);
        assert!(fs::read(scene.path("ram")).unwrap() == ram, "RAM differs");
    }
}

pub fn snapshot_of_a_stopped_guest() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    is_running(&mut qmp, &Beats::of(old.pid()), 1);
    qmp.done(Command::Stop);
    save(&scene, &mut qmp);
    let (new, mut next) = loaded(&scene, "new-", GUEST);
    assert_eq!(next.run_state(), RunState::Paused);
    next.done(Command::Cont);
    is_running(&mut next, &Beats::of(new.pid()), 1);
}

pub fn snapshot_is_sparse_and_private() {
    let scene = Scene::new();
    let large = "--kernel DIR/heartbeat --memory 1G";
    let mut old = scene.start(large);
    let mut qmp = old.qmp();
    is_running(&mut qmp, &Beats::of(old.pid()), 1);
    save(&scene, &mut qmp);
    let file = fs::metadata(scene.path("state")).unwrap();
    assert!(file.len() > 1 << 30);
    assert!(file.blocks() * 512 < 64 << 20, "{} KiB", file.blocks() / 2);
    assert_eq!(file.mode() & 0o7777, 0o600);
    let (new, mut next) = loaded(&scene, "new-", large);
    is_running(&mut next, &Beats::of(new.pid()), 1);
    let ram = Beats::of(new.pid()).ram().metadata().unwrap();
    assert!(ram.blocks() * 512 < 64 << 20, "{} KiB", ram.blocks() / 2);
}

pub fn snapshot_replaces_another() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    save(&scene, &mut qmp);
    qmp.done(Command::Cont);
    is_running(&mut qmp, &beats, 1);
    save(&scene, &mut qmp);
    let then = beats.count(0);
    let (new, mut next) = loaded(&scene, "new-", &format!("{GUEST} --paused"));
    assert_eq!(next.run_state(), RunState::Paused);
    assert_eq!(Beats::of(new.pid()).count(0), then);
}

pub fn damaged_snapshots_are_refused_by_name() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    is_running(&mut qmp, &Beats::of(old.pid()), 1);
    save(&scene, &mut qmp);
    let path = scene.path("state");
    let whole = fs::read(&path).unwrap();
    let mut texts = Vec::new();
    texts.push(refused(&scene, "--kernel DIR/heartbeat --memory 32M"));
    texts.push(refused(&scene, &format!("{GUEST} --cpus 2")));
    let state = whole.len() - 100;
    for (offset, name) in [(8, "version"), (45, "header"), (state, "state")] {
        let mut damaged = whole.clone();
        damaged[offset] ^= 0x40;
        fs::write(&path, &damaged).unwrap();
        texts.push(format!("{name}: {}", refused(&scene, GUEST)));
    }
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    texts.push(refused(&scene, GUEST));
    let text = scene.redact(&texts.join("\n"));
    insta::with_settings!({
        prepend_module_to_snapshot => false,
        filters => vec![(r"it has \d{8} bytes, which", "it has BYTES bytes, which")],
    }, {
        insta::assert_snapshot!("damaged_ram_snapshots", text);
    });
    fs::write(&path, &whole).unwrap();
    let (new, mut next) = loaded(&scene, "new-", GUEST);
    is_running(&mut next, &Beats::of(new.pid()), 1);
}

/// It belongs to RAM that this process does not have.
pub fn state_without_ram_is_refused() {
    let scene = Scene::new();
    scene.write("state", "something else");
    let text = refused(&scene, GUEST);
    assert!(text.contains("--incoming needs the guest's RAM"), "{text}");
}

pub fn failed_snapshot_leaves_the_old_one() {
    for (point, action) in
        [("save", "errno=ENOSPC"), ("save", "panic"), ("channel", "segv"), ("commit", "segv")]
    {
        let scene = Scene::new();
        let mut old = scene.start(&format!("{GUEST} --failpoint {point}={action}"));
        let mut qmp = old.qmp();
        let beats = Beats::of(old.pid());
        is_running(&mut qmp, &beats, 1);
        // A guest's only copy, as far as the VMM knows.
        scene.write("state", "an earlier snapshot");
        begin(&scene, &mut qmp, "file:DIR/state").expect("the snapshot is accepted");
        assert_eq!(outcome(&mut qmp).0, MigrationStatus::Failed, "{point} {action}");
        let left = fs::read(scene.path("state")).expect("one of both is there");
        // It was complete by then.
        let replaced = left.starts_with(b"CPRSNAP");
        assert_eq!(replaced, point == "commit", "{point} {action}");
        assert!(replaced || left == b"an earlier snapshot");
        is_running(&mut qmp, &beats, 1);
        save(&scene, &mut qmp);
        let mut magic = [0; 7];
        File::open(scene.path("state")).unwrap().read_exact_at(&mut magic, 0).unwrap();
        assert_eq!(&magic, b"CPRSNAP");
        let (new, mut next) = loaded(&scene, "new-", GUEST);
        is_running(&mut next, &Beats::of(new.pid()), 1);
    }
}
