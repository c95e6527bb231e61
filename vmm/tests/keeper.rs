//! Tests that the keeper continues a guest in another process after its own has ended.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::ExitCode;
use std::ptr;

use cpr_qmp::command::Command;
use cpr_qmp::event::Continued;
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
        keeper_continues_if_the_old_process_cannot,
        killed_vmm_is_continued_and_reported,
        stopped_guest_stays_stopped,
        guest_dies_with_a_vmm_without_keeper,
        keeper_exits_with_its_vmm,
        requests_in_flight_are_answered,
        disconnected_clients_do_not_prevent_continuation,
        killed_keeper_is_replaced,
        keeper_ignores_end_signals,
        keeper_remains_after_a_failed_update,
        lowered_limits_do_not_affect_the_keeper,
        finished_update_gets_no_new_keeper,
        requests_after_long_answers_are_answered,
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

/// Returns the keeper of a VMM that always has one and no other child.
fn keeper_of(pid: u32) -> u32 {
    let [keeper] = process::children(pid)[..] else { panic!("there must be exactly one child") };
    keeper
}

fn kill(pid: u32, qmp: &mut Qmp) -> u32 {
    process::send(pid, Signal::SIGKILL);
    let continued: Continued = qmp.event_data(Continued::NAME);
    assert_eq!(continued.former_pid, pid as i32);
    assert_eq!(continued.reason, "it was killed by SIGKILL");
    continued.pid as u32
}

/// If the old program cannot continue in its own process, its keeper does, with the old limits.
fn keeper_continues_if_the_old_process_cannot() {
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
    let written = fs::read_to_string(scene.path("pid")).expect("the PID file is rewritten");
    assert_eq!(written, format!("{pid}\n"));
    assert_eq!(vm.end().code(), Some(70));
    qmp.done(Command::Quit);
    until("the end of the other process", || match scene.path("pid").exists() {
        true => Err("the PID file exists"),
        false => Ok(()),
    });
}

fn killed_vmm_is_continued_and_reported() {
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
        let written = fs::read_to_string(scene.path("pid")).expect("the PID file is rewritten");
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

fn stopped_guest_stays_stopped() {
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

fn guest_dies_with_a_vmm_without_keeper() {
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

fn keeper_exits_with_its_vmm() {
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

/// A client that waits for an update gets an answer even if the process is killed.
fn requests_in_flight_are_answered() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    // It never answers the rehearsal.
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
        let refused = update.join().expect("the thread does not panic").expect_err("it is refused");
        assert!(refused.desc.contains(&format!("continues in process {pid}")), "{refused:?}");
        assert_eq!(other.run_state(), RunState::Running);
        other.done(Command::Quit);
        end_of(pid);
    });
}

/// The published state of a client that has left must not name a descriptor that was reused.
fn disconnected_clients_do_not_prevent_continuation() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on --serial unix:DIR/serial"));
    let mut stays = vm.qmp();
    let mut pid = vm.pid();
    for _ in 0..5 {
        let connect = |name| UnixStream::connect(scene.path(name)).expect("the VMM listens");
        let leaves = (Qmp::new(connect("qmp")), connect("serial"));
        assert_eq!(stays.run_state(), RunState::Running);
        drop(leaves);
        pid = kill(pid, &mut stays);
        assert_eq!(stays.run_state(), RunState::Running);
    }
    stays.done(Command::Quit);
    end_of(pid);
}

fn killed_keeper_is_replaced() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = vm.qmp();
    let keeper = keeper_of(vm.pid());
    process::send(keeper, Signal::SIGKILL);
    until("another keeper", || match process::children(vm.pid())[..] {
        [another] if another != keeper => Ok(()),
        ref children => Err(format!("{children:?}")),
    });
    // It is ready when the next request is answered.
    assert_eq!(qmp.run_state(), RunState::Running);
    let pid = kill(vm.pid(), &mut qmp);
    assert_eq!(qmp.run_state(), RunState::Running);
    qmp.done(Command::Quit);
    end_of(pid);
}

/// The keeper is not a VMM yet, and must not become one that exits at once.
fn keeper_ignores_end_signals() {
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

fn keeper_remains_after_a_failed_update() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on"));
    let mut qmp = vm.qmp();
    let script = scene.script("exits", "#!/bin/sh\nexit 3\n");
    qmp.rehearsal = false;
    qmp.begin_update(&[script], &vm.state_file()).expect("the command is not rehearsed");
    let continued: Continued = qmp.event_data(Continued::NAME);
    let pid = kill(continued.pid as u32, &mut qmp);
    assert_eq!(qmp.run_state(), RunState::Running);
    qmp.done(Command::Quit);
    end_of(pid);
}

/// The keeper keeps the old limits.
fn lowered_limits_do_not_affect_the_keeper() {
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

/// Both keepers are dead when the new process first polls: it sees the end of the update and the
/// death of its own keeper at the same time.
fn finished_update_gets_no_new_keeper() {
    let scene = Scene::new();
    let fifo = scene.path("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    qmp.rehearsal = false;
    let mut command = vm.command_again("file:DIR/state");
    command.extend(scene.words("--failpoint commit=hold=DIR/fifo"));
    qmp.begin_update(&command, &vm.state_file()).expect("the command is not rehearsed");
    // Opens once the new process has reached the fail point.
    let held = File::options().write(true).open(&fifo).unwrap();
    let keepers = process::children(vm.pid());
    assert_eq!(keepers.len(), 2, "{keepers:?}");
    for keeper in keepers {
        process::send(keeper, Signal::SIGKILL);
        end_of(keeper);
    }
    drop(held);
    qmp.event("MIGRATION completed", |event| {
        (event.migration_status() == Some(MigrationStatus::Completed)).then_some(())
    });
    assert_eq!(qmp.run_state(), RunState::Running);
    assert_eq!(process::children(vm.pid()), [0; 0]);
    qmp.done(Command::Quit);
    assert_eq!(vm.end().code(), Some(0), "{}", vm.stderr());
}

/// A client that has sent all its requests and is not served because of unread output.
fn requests_after_long_answers_are_answered() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --keeper on"));
    drop(vm.qmp());
    let mut stream = UnixStream::connect(scene.path("qmp")).expect("the VMM listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket has a timeout");
    let long = r#"{"execute":"query-qmp-schema"}"#.repeat(8);
    let last = r#"{"execute":"query-name","id":"last"}"#;
    write!(stream, r#"{{"execute":"qmp_capabilities"}}{long}{last}"#).unwrap();
    let answered = BufReader::new(stream)
        .lines()
        .any(|line| line.expect("the VMM answers").contains(r#""id": "last""#));
    assert!(answered);
}
