//! The keeper continues a guest whose process has ended, in another process.

// Parts of it are for other tests.
#[allow(dead_code, unused_imports)]
mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::ExitCode;
use std::ptr;

use cpr_qmp::command::Command;
use cpr_qmp::event::{Continued, EventKind};
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use support::process;
use support::trials::{self, kvm, trials};
use support::{PATIENCE, Qmp, Scene, until};

fn main() -> ExitCode {
    trials::run(trials![kvm();
        what_its_own_process_cannot_continue_the_keeper_does,
        a_killed_vmm_continues_where_it_was_told_to_and_says_so,
        a_stopped_guest_stays_stopped,
        a_vmm_without_a_keeper_takes_the_guest_with_it,
        a_keeper_ends_with_the_vmm_that_was_told_to,
        requests_in_flight_are_answered,
        clients_that_have_left_keep_nobody_from_continuing,
        a_keeper_that_is_killed_is_replaced,
        what_asks_the_keeper_to_end_ends_nothing,
        a_failed_update_leaves_a_keeper,
        limits_lowered_since_do_not_hold_the_keeper_up,
        an_update_that_is_over_gets_no_keeper,
        what_follows_long_answers_is_answered,
    ])
}

const GUEST: &str = "--kernel DIR/heartbeat --memory 16M";

/// Waits for the end of a process that is not a child.
fn end_of(pid: u32) {
    let stat = format!("/proc/{pid}/stat");
    until("the end of the process", || match fs::read_to_string(&stat) {
        Ok(stat) if !stat.contains(") Z ") => Err(stat),
        _ => Ok(()),
    });
}

/// The keeper of a VMM that always has one, and no other child.
fn keeper_of(pid: u32) -> u32 {
    let [keeper] = process::children(pid)[..] else { panic!("there is one keeper") };
    keeper
}

fn kill(pid: u32, qmp: &mut Qmp) -> u32 {
    process::send(pid, Signal::SIGKILL);
    let continued: Continued = qmp.event_data(Continued::NAME);
    assert_eq!(continued.former_pid, pid as i32);
    assert_eq!(continued.reason, "it was killed by SIGKILL");
    continued.pid as u32
}

/// The old program cannot continue in its own process: its keeper does, with the limits of before.
fn what_its_own_process_cannot_continue_the_keeper_does() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --pid-file DIR/pid"));
    let mut qmp = vm.qmp();
    scene.update_without_descriptors(&vm, &mut qmp);
    let continued: Continued = qmp.event_data(Continued::NAME);
    assert_eq!(continued.former_pid, vm.pid() as i32);
    assert!(continued.reason.contains("descriptor"), "{}", continued.reason);
    assert_eq!(qmp.run_state(), RunState::Running);
    let migration = qmp.migration();
    assert_eq!(migration.status, Some(MigrationStatus::Failed));
    let (error, pid) = (migration.error_desc.unwrap_or_default(), continued.pid.to_string());
    assert!(error.contains(&pid), "{error}");
    let written = fs::read_to_string(scene.path("pid")).expect("it is written anew");
    assert_eq!(written, format!("{pid}\n"));
    assert_eq!(vm.end().code(), Some(70));
    qmp.done(Command::Quit);
    until("the end of the other process", || match scene.path("pid").exists() {
        true => Err("its PID file is there"),
        false => Ok(()),
    });
}

fn a_killed_vmm_continues_where_it_was_told_to_and_says_so() {
    let scene = Scene::new();
    let manager = UnixDatagram::bind(scene.path("notify")).expect("a socket");
    let notify = scene.path("notify");
    let mut vm = scene.start_with(&format!("{GUEST} --keeper on --pid-file DIR/pid"), |program| {
        program.env("NOTIFY_SOCKET", &notify);
    });
    let mut qmp = vm.qmp();
    let mut pid = vm.pid();
    let mut said = String::new();
    for _ in 0..3 {
        let next = kill(pid, &mut qmp);
        assert_eq!(qmp.run_state(), RunState::Running);
        assert_eq!(qmp.migration().status, None);
        let written = fs::read_to_string(scene.path("pid")).expect("it is written anew");
        assert_eq!(written, format!("{next}\n"));
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).expect("the manager is told");
        assert_eq!(&buffer[..length], format!("MAINPID={next}\n").as_bytes());
        said += &format!(
            "cpr-vmm: process {pid} ended (it was killed by SIGKILL): the VM continues in process \
             {next}\n"
        );
        assert_eq!(vm.stderr(), said);
        pid = next;
    }
    vm.end();
    qmp.done(Command::Quit);
    end_of(pid);
    assert!(!scene.path("qmp").exists() && !scene.path("pid").exists());
}

fn a_stopped_guest_stays_stopped() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = vm.qmp();
    qmp.done(Command::Stop);
    let pid = kill(vm.pid(), &mut qmp);
    assert_eq!(qmp.run_state(), RunState::Paused);
    qmp.done(Command::Cont);
    let pid = kill(pid, &mut qmp);
    assert_eq!(qmp.run_state(), RunState::Running);
    qmp.done(Command::Quit);
    end_of(pid);
}

fn a_vmm_without_a_keeper_takes_the_guest_with_it() {
    let scene = Scene::new();
    for policy in ["off", "update"] {
        let mut vm = scene.start(&format!("{GUEST} --keeper {policy}"));
        drop(vm.qmp());
        assert_eq!(process::children(vm.pid()), [0; 0]);
        process::send(vm.pid(), Signal::SIGKILL);
        assert!(!vm.end().success());
        assert_eq!(vm.stderr(), "");
    }
}

fn a_keeper_ends_with_the_vmm_that_was_told_to() {
    for signal in [Some(Signal::SIGTERM), None] {
        let scene = Scene::new();
        let mut vm = scene.start(&format!("{GUEST} --keeper on"));
        let mut qmp = vm.qmp();
        let keeper = keeper_of(vm.pid());
        match signal {
            Some(signal) => process::send(vm.pid(), signal),
            None => qmp.done(Command::Quit),
        }
        assert_eq!(vm.end().code(), Some(0));
        end_of(keeper);
        assert_eq!(vm.stderr(), "");
    }
}

/// The client that waits for the end of an update hears of it, whatever ends the process.
fn requests_in_flight_are_answered() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    // It answers no rehearsal for as long as it may.
    let script = scene.script("sleeps", "#!/bin/sh\nexec sleep 60\n");
    let mut other = vm.qmp();
    let [first] = [vm.pid()];
    std::thread::scope(|scope| {
        let update = scope.spawn(|| qmp.begin_update(&[script], &vm.state_file()));
        until("the keeper and the rehearsal", || match process::children(first).len() {
            2.. => Ok(()),
            few => Err(few),
        });
        let pid = kill(first, &mut other);
        let refused = update.join().expect("it does not panic").expect_err("it is refused");
        assert!(refused.desc.contains(&format!("continues in process {pid}")), "{refused:?}");
        assert_eq!(other.run_state(), RunState::Running);
        other.done(Command::Quit);
        end_of(pid);
    });
}

/// What was published of a client that has left since names no descriptor of anybody else's.
fn clients_that_have_left_keep_nobody_from_continuing() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on --serial unix:DIR/serial"));
    let mut stays = vm.qmp();
    let mut pid = vm.pid();
    for _ in 0..5 {
        let connect = |name| UnixStream::connect(scene.path(name)).expect("it listens");
        let leaves = (Qmp::new(connect("qmp")), connect("serial"));
        assert_eq!(stays.run_state(), RunState::Running);
        drop(leaves);
        pid = kill(pid, &mut stays);
        assert_eq!(stays.run_state(), RunState::Running);
    }
    stays.done(Command::Quit);
    end_of(pid);
}

fn a_keeper_that_is_killed_is_replaced() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = vm.qmp();
    let keeper = keeper_of(vm.pid());
    process::send(keeper, Signal::SIGKILL);
    until("another keeper", || match process::children(vm.pid())[..] {
        [another] if another != keeper => Ok(()),
        ref children => Err(format!("{children:?}")),
    });
    // It stands ready when the next request is answered.
    assert_eq!(qmp.run_state(), RunState::Running);
    let pid = kill(vm.pid(), &mut qmp);
    assert_eq!(qmp.run_state(), RunState::Running);
    qmp.done(Command::Quit);
    end_of(pid);
}

/// It is no VMM yet, and must not become one that ends at once.
fn what_asks_the_keeper_to_end_ends_nothing() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = vm.qmp();
    let keeper = keeper_of(vm.pid());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGALRM] {
        process::send(keeper, signal);
    }
    let pid = kill(vm.pid(), &mut qmp);
    assert_eq!(qmp.run_state(), RunState::Running);
    let pid = kill(pid, &mut qmp);
    qmp.done(Command::Quit);
    end_of(pid);
}

fn a_failed_update_leaves_a_keeper() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = vm.qmp();
    let script = scene.script("exits", "#!/bin/sh\nexit 3\n");
    qmp.rehearsal = false;
    qmp.begin_update(&[script], &vm.state_file()).expect("it is not rehearsed");
    let continued: Continued = qmp.event_data(Continued::NAME);
    let pid = kill(continued.pid as u32, &mut qmp);
    assert_eq!(qmp.run_state(), RunState::Running);
    qmp.done(Command::Quit);
    end_of(pid);
}

/// The keeper has the limits of before.
fn limits_lowered_since_do_not_hold_the_keeper_up() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = vm.qmp();
    for resource in [libc::RLIMIT_NOFILE, libc::RLIMIT_NPROC, libc::RLIMIT_FSIZE, libc::RLIMIT_AS] {
        let (pid, mut limit) = (vm.pid() as i32, libc::rlimit { rlim_cur: 0, rlim_max: 0 });
        // SAFETY: a structure that lives for the calls; null pointers are allowed.
        let set = unsafe {
            libc::prlimit(pid, resource, ptr::null(), &mut limit);
            limit.rlim_cur = 0;
            libc::prlimit(pid, resource, &limit, ptr::null_mut())
        };
        assert_eq!(Errno::result(set), Ok(0), "limit {resource}");
    }
    let pid = kill(vm.pid(), &mut qmp);
    assert_eq!(qmp.run_state(), RunState::Running);
    let pid = kill(pid, &mut qmp);
    assert_eq!(qmp.run_state(), RunState::Running);
    qmp.done(Command::Quit);
    end_of(pid);
}

/// Both keepers are dead when the new process waits for the first time: it hears of the end of the
/// update and of the death of its own at once.
fn an_update_that_is_over_gets_no_keeper() {
    let scene = Scene::new();
    let fifo = scene.path("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    qmp.rehearsal = false;
    let mut command = vm.command_again("file:DIR/state");
    command.extend(scene.words("--failpoint commit=hold=DIR/fifo"));
    qmp.begin_update(&command, &vm.state_file()).expect("it is not rehearsed");
    // Opens once the new process is there.
    let held = File::options().write(true).open(&fifo).unwrap();
    let keepers = process::children(vm.pid());
    assert_eq!(keepers.len(), 2, "{keepers:?}");
    for keeper in keepers {
        process::send(keeper, Signal::SIGKILL);
        end_of(keeper);
    }
    drop(held);
    qmp.event("MIGRATION completed", |event| {
        let completed = EventKind::Migration { status: MigrationStatus::Completed };
        (event == completed).then_some(())
    });
    assert_eq!(qmp.run_state(), RunState::Running);
    assert_eq!(process::children(vm.pid()), [0; 0]);
    qmp.done(Command::Quit);
    assert_eq!(vm.end().code(), Some(0), "{}", vm.stderr());
}

/// A client that is not served for its unread output, and has sent all that it will.
fn what_follows_long_answers_is_answered() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on"));
    drop(vm.qmp());
    let mut stream = UnixStream::connect(scene.path("qmp")).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
    let long = r#"{"execute":"query-qmp-schema"}"#.repeat(8);
    let last = r#"{"execute":"query-name","id":"last"}"#;
    write!(stream, r#"{{"execute":"qmp_capabilities"}}{long}{last}"#).unwrap();
    let answered = BufReader::new(stream)
        .lines()
        .any(|line| line.expect("it is answered").contains(r#""id": "last""#));
    assert!(answered);
}
