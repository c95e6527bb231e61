//! Tests the VMM's output when nothing reads it.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command as Program, ExitCode};

use cpr_qmp::command::Command;
use cpr_qmp::run_state::RunState;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::{mkfifo, pipe, write};
use support::trials::{self, kvm, trials};
use support::{Scene, until};

fn main() -> ExitCode {
    let mut tests = trials![None; blocked_stderr_does_not_change_exit_status];
    tests.extend(trials![kvm(); late_reader_gets_the_log]);
    trials::run(tests)
}

/// Creates a full pipe that blocks, as a shell makes it.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = pipe().expect("a pipe");
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("F_SETFL works on a pipe");
    while write(&writer, &[b'.'; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("F_SETFL works on a pipe");
    (reader, writer)
}

fn blocked_stderr_does_not_change_exit_status() {
    let scene = Scene::new();
    let (_reader, writer) = full_pipe();
    let without_reader = pipe().expect("a pipe").1;
    let device = File::options().write(true).open("/dev/full").expect("the file exists");
    let sinks = [("full device", device.into()), ("full pipe", writer), ("pipe", without_reader)];
    for (name, sink) in sinks {
        for (status, arguments, rehearsal) in [
            (1, "--kernel DIR/missing", None),
            (1, "--kernel DIR/missing --log-file DIR/log", None),
            (1, "--kernel DIR/missing", Some("stale")),
            (2, "--unknown", None),
            (2, "", None),
        ] {
            let stderr = sink.try_clone().expect("a descriptor");
            let mut program: Program = scene.command(arguments);
            program.envs(rehearsal.map(|value| ("CPR_REHEARSAL", value))).stderr(stderr);
            let mut child = program.spawn().expect("the VMM starts");
            let ended = until("the end of the VMM", || {
                child.try_wait().expect("it is our child").ok_or("still running")
            });
            assert_eq!(ended.code(), Some(status), "{name}: {arguments}");
        }
    }
}

fn late_reader_gets_the_log() {
    let scene = Scene::new();
    let fifo = scene.path("log");
    mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).expect("a FIFO");
    let mut vm = scene.start("--kernel DIR/heartbeat --memory 16M --log debug --log-file DIR/log");
    let mut qmp = vm.qmp();
    // Far more lines than a pipe and the VMM's queue hold.
    for _ in 0..2000 {
        drop(vm.qmp());
    }
    assert_eq!(qmp.run_state(), RunState::Running);
    let mut reader =
        File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&fifo).expect("it exists");
    let mut log = Vec::new();
    until("the end of the log", || {
        // Another client logs another line, after which lost lines are reported.
        drop(vm.qmp());
        // Data comes before the error.
        let _ = reader.read_to_end(&mut log);
        let text = String::from_utf8_lossy(&log);
        if text.contains("log_lines_lost lines=") { Ok(()) } else { Err(log.len()) }
    });
    assert!(String::from_utf8_lossy(&log).contains("machine_step"), "the beginning is lost");
    vm.update(&mut qmp);
    qmp.done(Command::Quit);
    assert_eq!(vm.end().code(), Some(0));
    // Nothing else writes to the log any more.
    let _ = reader.read_to_end(&mut log);
    let text = String::from_utf8_lossy(&log);
    for point in ["cpr_exec", "cpr_adopt", "cpr_state_load", "end status=0"] {
        assert!(text.contains(point), "the log lacks {point}");
    }
}
