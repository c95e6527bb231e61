//! Transfers in which one of the two processes acts too late: the guest runs in exactly one.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use cpr_qmp::command::Command;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::steps::*;
use crate::support::{Beats, Qmp, Scene, process};

/// The deadline of a transfer, in milliseconds, and how long a process must be stopped to miss it.
const DEADLINE: u64 = 200;
const TOO_LONG: Duration = Duration::from_millis(1600);

/// Checks that the guest runs in the process of this client only: it stands once that stops it.
fn runs_nowhere_else(qmp: &mut Qmp, beats: &Beats) {
    is_running(qmp, beats, 1);
    qmp.done(Command::Stop);
    let count = beats.count(0);
    // The guest beats every millisecond.
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(beats.count(0), count, "another process runs the guest");
    qmp.done(Command::Cont);
    is_running(qmp, beats, 1);
}

fn stop_for_too_long(pid: u32) {
    std::thread::sleep(TOO_LONG);
    process::send(pid, Signal::SIGCONT);
}

/// The old process stands still while the new one claims the guest, and then falls back.
pub fn old_process_does_not_run_a_claimed_guest(keeper: &str) {
    let scene = Scene::new();
    let fifo = fifo(&scene);
    let mut old = scene.start(&format!("{GUEST} --keeper {keeper}"));
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    let arguments = format!("{GUEST} --failpoint commit=hold=DIR/fifo");
    let (_new, mut new_qmp) = waiting(&scene, "new-", &arguments);
    set_mode(&mut qmp, Some(DEADLINE));
    begin(&scene, &mut qmp, "new-", "unix:DIR/new-main").expect("the transfer is accepted");
    let held = File::options().write(true).open(&fifo).unwrap();
    process::send(old.pid(), Signal::SIGSTOP);
    drop(held);
    outcome(&mut new_qmp);
    stop_for_too_long(old.pid());
    old.end();
    assert!(!old.stderr().contains("continues in process"), "{}", old.stderr());
    runs_nowhere_else(&mut new_qmp, &beats);
}

/// The new process dies before it claims the guest, which the old one has taken back meanwhile.
pub fn new_process_is_not_continued_without_its_guest(keeper: &str) {
    let scene = Scene::new();
    let fifo = fifo(&scene);
    let mut old = scene.start(&format!("{GUEST} --keeper {keeper}"));
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    let arguments = format!("{GUEST} --keeper on --failpoint commit=hold=DIR/fifo");
    let (mut new, _new_qmp) = waiting(&scene, "new-", &arguments);
    set_mode(&mut qmp, Some(DEADLINE));
    begin(&scene, &mut qmp, "new-", "unix:DIR/new-main").expect("the transfer is accepted");
    let held = File::options().write(true).open(&fifo).unwrap();
    process::send(old.pid(), Signal::SIGSTOP);
    stop_for_too_long(old.pid());
    is_running(&mut qmp, &beats, 1);
    process::send(new.pid(), Signal::SIGKILL);
    new.end();
    drop(held);
    assert!(!new.stderr().contains("continues in process"), "{}", new.stderr());
    runs_nowhere_else(&mut qmp, &beats);
}

/// The new process is told to end while it takes the guest over.
pub fn end_signal_before_the_claim_leaves_the_guest() {
    let scene = Scene::new();
    let fifo = fifo(&scene);
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    let arguments = format!("{GUEST} --failpoint commit=hold=DIR/fifo");
    let (mut new, _new_qmp) = waiting(&scene, "new-", &arguments);
    begin(&scene, &mut qmp, "new-", "unix:DIR/new-main").expect("the transfer is accepted");
    let held = File::options().write(true).open(&fifo).unwrap();
    process::send(new.pid(), Signal::SIGTERM);
    drop(held);
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Failed);
    let why = qmp.migration().error_desc.expect("a failure says why");
    assert!(why.contains("termination signal"), "{why}");
    new.end();
    is_running(&mut qmp, &beats, 1);
    can_move(&scene, &mut qmp, &beats);
}

pub fn refused_migrate_starts_no_keeper() {
    let scene = Scene::new();
    let arguments = format!("{GUEST} --keeper on");
    let mut old = scene.start(&arguments);
    let mut qmp = old.qmp();
    let (new, mut new_qmp) = waiting(&scene, "new-", &arguments);
    let nowhere = |qmp: &mut Qmp| begin(&scene, qmp, "other-", "unix:DIR/other-main");
    nowhere(&mut new_qmp).expect_err("there is no guest yet");
    assert!(process::children(new.pid()).is_empty());
    assert_eq!(transfer(&scene, &mut qmp, "new-"), MigrationStatus::Completed);
    nowhere(&mut qmp).expect_err("there is no guest any more");
    assert!(process::children(old.pid()).is_empty());
}

pub fn guest_that_is_stopped_while_it_is_awaited_stays_stopped() {
    let scene = Scene::new();
    let mut old = scene.start(GUEST);
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    let (_new, mut new_qmp) = waiting(&scene, "new-", GUEST);
    new_qmp.done(Command::Stop);
    assert_eq!(transfer(&scene, &mut qmp, "new-"), MigrationStatus::Completed);
    outcome(&mut new_qmp);
    assert_eq!(new_qmp.run_state(), RunState::Paused);
    new_qmp.done(Command::Cont);
    is_running(&mut new_qmp, &beats, 1);
}

/// More descriptors come than this process may open: none of them stays open.
pub fn descriptors_that_do_not_fit_are_closed() {
    const LIMIT: u64 = 100;
    let scene = Scene::new();
    let mut old = scene.start_with(GUEST, |command| {
        // SAFETY: one system call.
        unsafe {
            command.pre_exec(|| Ok(setrlimit(Resource::RLIMIT_NOFILE, LIMIT, LIMIT)?));
        }
    });
    let mut qmp = old.qmp();
    let beats = Beats::of(old.pid());
    is_running(&mut qmp, &beats, 1);
    let before = process::descriptors(old.pid()).len();
    let listener = UnixListener::bind(cpr_path(&scene, "new-")).unwrap();
    begin(&scene, &mut qmp, "new-", "unix:DIR/new-main").expect("the transfer is accepted");
    let (peer, _) = listener.accept().unwrap();
    let null = File::open("/dev/null").unwrap();
    let many = [null.as_raw_fd(); 250];
    let text = [std::io::IoSlice::new(&[b'x'; 40])];
    let rights = [ControlMessage::ScmRights(&many)];
    sendmsg::<()>(peer.as_raw_fd(), &text, &rights, MsgFlags::empty(), None).unwrap();
    assert_eq!(outcome(&mut qmp).0, MigrationStatus::Failed);
    is_running(&mut qmp, &beats, 1);
    assert_eq!(process::descriptors(old.pid()).len(), before);
    std::fs::remove_file(cpr_path(&scene, "new-")).unwrap();
    can_move(&scene, &mut qmp, &beats);
}
