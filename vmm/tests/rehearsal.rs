//! Tests rehearsals of a whole VMM: processes that they leave alone, and those they cannot kill.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command as Program, ExitCode, Stdio};

use cpr_qmp::command::Command;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use support::process;
use support::trials::{self, Missing, kvm, trial};
use support::{Scene, until};

const GUEST: &str = "--kernel DIR/heartbeat --memory 16M";

fn main() -> ExitCode {
    trials::run(vec![
        trial("stale_variable_starts_no_rehearsal", kvm(), stale_variable_starts_no_rehearsal),
        trial("sidecar_survives_a_crash", kvm(), sidecar_survives_a_crash),
        trial(
            "unkillable_rehearsal_is_abandoned",
            other_users(),
            unkillable_rehearsal_is_abandoned,
        ),
    ])
}

/// Requires what it takes to start a program as another user.
fn other_users() -> Missing {
    let setpriv = fs::metadata("/usr/bin/setpriv").is_ok();
    let able = nix::unistd::geteuid().is_root() && setpriv;
    kvm().or_else(|| (!able).then(|| "needs root and /usr/bin/setpriv".to_owned()))
}

fn stale_variable_starts_no_rehearsal() {
    let scene = Scene::new();
    let mut vm = scene.start_with(GUEST, |program: &mut Program| {
        program.env("CPR_REHEARSAL", "3").env("CPR_REHEARSAL_MARK", "999999.1");
    });
    let mut qmp = vm.qmp();
    assert_eq!(qmp.run_state(), RunState::Running);
    assert!(vm.stderr().contains("CPR_REHEARSAL=3 is ignored"), "{}", vm.stderr());
    vm.update(&mut qmp);
    let left: Vec<_> = process::environment(vm.pid())
        .into_iter()
        .filter(|variable| variable.starts_with("CPR_REHEARSAL"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

fn sidecar_survives_a_crash() {
    let scene = Scene::new();
    let mut vm =
        scene.start_with(&format!("{GUEST} --failpoint save=segv"), |vmm: &mut Program| {
            let mut shell = Program::new("/bin/sh");
            shell.args(["-c", "sleep 1000 & echo $! >sidecar; exec \"$@\"", "sh"]);
            shell.arg(vmm.get_program()).args(vmm.get_args()).current_dir(scene.dir());
            shell.stdin(Stdio::null()).stdout(Stdio::null());
            *vmm = shell;
        });
    let mut qmp = vm.qmp();
    let sidecar = fs::read_to_string(scene.path("sidecar")).expect("the shell wrote it");
    let sidecar: u32 = sidecar.trim().parse().expect("it is a process ID");
    let command = vm.command_again("file:DIR/state");
    assert_eq!(qmp.update(&command, &vm.state_file()), MigrationStatus::Failed);
    assert_eq!(state_of(sidecar), Some('S'));
    vm.update(&mut qmp);
    assert_eq!(state_of(sidecar), Some('S'));
    process::send(sidecar, Signal::SIGKILL);
    qmp.done(Command::Quit);
    assert_eq!(vm.end().code(), Some(0), "{}", vm.stderr());
}

/// Returns the process state, such as `R`, `S` or `Z`; `None` if there is no such process.
fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The VMM may not signal other users' processes, and the command changes its user.
fn unkillable_rehearsal_is_abandoned() {
    const CAP_KILL: libc::c_ulong = 5;
    let scene = Scene::new();
    let mut vm = scene.start_with(GUEST, |program: &mut Program| {
        let drop_kill = || {
            // SAFETY: plain integers.
            let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_KILL, 0, 0, 0) };
            Errno::result(dropped).map(drop).map_err(Into::into)
        };
        // SAFETY: `prctl` may be called between fork and exec.
        unsafe { program.pre_exec(drop_kill) };
    });
    let mut qmp = vm.qmp();
    let words = ["setpriv", "--reuid=65534", "--clear-groups", "sleep", "1000"];
    let error = qmp.begin_update(&words.map(str::to_owned), &vm.state_file()).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("did not answer the rehearsal"), "{error}");
    assert!(error.contains("cannot be ended: kill: Operation not permitted"), "{error}");
    // The keeper is gone before the next answer.
    assert_eq!(qmp.migration().status, None);
    let children = process::children(vm.pid());
    let [left] = children.as_slice() else { panic!("{children:?}") };
    // It does not block the next update, and is reaped when it ends.
    process::send(*left, Signal::SIGKILL);
    until("the end of the process", || match state_of(*left) {
        None => Ok(()),
        state => Err(format!("{state:?}")),
    });
    vm.update(&mut qmp);
    qmp.done(Command::Quit);
    assert_eq!(vm.end().code(), Some(0), "{}", vm.stderr());
}
