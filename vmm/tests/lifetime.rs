//! Tests a VMM from startup through updates to exit, as seen from outside.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command as Program, ExitCode};

use cpr_qmp::command::{Command, MigrateIncomingArgs};
use cpr_qmp::event::EventKind;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::{RunState, ShutdownCause};
use libtest_mimic::Trial;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use support::process;
use support::trials::{self, kvm, trial, trials};
use support::{Qmp, Scene, Vm, until};

fn main() -> ExitCode {
    let mut tests = trials![kvm();
        successor_of_a_killed_vmm_reuses_its_paths,
        ignored_hangup_stays_ignored,
        startup_work_is_not_repeated,
        signal_settings_survive_updates,
        vcpu_threads_block_end_signals,
        updates_leave_nothing_behind,
        failed_exec_changes_nothing,
        failed_updates_say_why,
        deferred_load_can_be_retried,
        failed_deferred_load_falls_back,
        failed_takeover_falls_back,
        stranded_guest_can_be_rescued,
    ];
    tests.extend(endings());
    trials::run(tests)
}

const GUEST: &str = "--kernel DIR/heartbeat --memory 16M";

/// How a test ends a VMM.
#[derive(Clone, Copy)]
enum Ending {
    Signal(Signal),
    Quit,
    Guest,
}

fn endings() -> Vec<Trial> {
    let by_signal = |signal| (Ending::Signal(signal), 0, false, ShutdownCause::HostSignal);
    let endings = [
        ("sigterm", by_signal(Signal::SIGTERM)),
        ("sigint", by_signal(Signal::SIGINT)),
        ("sighup", by_signal(Signal::SIGHUP)),
        ("quit", (Ending::Quit, 0, false, ShutdownCause::HostQmpQuit)),
        // The guest writes 0, which is status 1.
        ("the_guest", (Ending::Guest, 1, true, ShutdownCause::GuestShutdown)),
    ];
    let mut tests = Vec::new();
    for (name, (ending, status, guest, reason)) in endings {
        for updated in [false, true] {
            let when = if updated { "_after_an_update" } else { "" };
            let shutdown = EventKind::Shutdown { guest, reason };
            let test = move || ends_cleanly(ending, updated, status, shutdown);
            tests.push(trial(format!("ended_by_{name}{when}"), kvm(), test));
        }
    }
    tests
}

fn ends_cleanly(ending: Ending, updated: bool, status: i32, shutdown: EventKind) {
    let scene = Scene::new();
    let mut before = scene.files();
    let mut vm = scene.start(&format!(
        "{GUEST} --paused --test-device on --cmdline end=exit --serial unix:DIR/serial --pid-file DIR/pid"
    ));
    let mut qmp = vm.qmp();
    if updated {
        vm.update(&mut qmp);
    }
    match ending {
        Ending::Signal(signal) => process::send(vm.pid(), signal),
        Ending::Quit => qmp.done(Command::Quit),
        Ending::Guest => qmp.done(Command::Cont),
    }
    let seen =
        qmp.event("SHUTDOWN", |event| matches!(event, EventKind::Shutdown { .. }).then_some(event));
    assert_eq!(seen, shutdown);
    assert_eq!(vm.end().code(), Some(status), "{}", vm.stderr());
    assert_eq!(vm.stderr(), "");
    before.extend(updated.then(|| "state".to_owned()));
    before.push("stderr".to_owned());
    before.sort();
    assert_eq!(scene.files(), before);
}

fn successor_of_a_killed_vmm_reuses_its_paths() {
    let scene = Scene::new();
    let arguments = format!("{GUEST} --serial unix:DIR/serial --pid-file DIR/pid");
    let mut killed = scene.start(&arguments);
    drop(killed.qmp());
    process::send(killed.pid(), Signal::SIGKILL);
    killed.end();
    for left in ["qmp", "serial", "pid"] {
        assert!(scene.path(left).exists(), "a killed VMM cannot remove {left}");
    }
    let mut vm = scene.start(&arguments);
    assert_eq!(vm.qmp().run_state(), RunState::Running);
    UnixStream::connect(scene.path("serial")).expect("the serial socket has a listener");
    let pid = fs::read_to_string(scene.path("pid")).expect("the PID file exists");
    assert_eq!(pid, format!("{}\n", vm.pid()));
}

fn ignored_hangup_stays_ignored() {
    let scene = Scene::new();
    let mut vm = scene.start_with(GUEST, |program: &mut Program| {
        let ignore = || {
            // SAFETY: SIG_IGN is a valid disposition.
            let before = unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
            if before == libc::SIG_ERR { Err(Errno::last().into()) } else { Ok(()) }
        };
        // SAFETY: `signal` may be called between fork and exec.
        unsafe { program.pre_exec(ignore) };
    });
    let mut qmp = vm.qmp();
    for updates in 0..2 {
        let ignored = process::signals(vm.pid())["SigIgn"];
        assert_ne!(ignored & 1 << (libc::SIGHUP - 1), 0, "{ignored:#x} after {updates} updates");
        process::send(vm.pid(), Signal::SIGHUP);
        assert_eq!(qmp.run_state(), RunState::Running);
        vm.update(&mut qmp);
    }
    process::send(vm.pid(), Signal::SIGTERM);
    assert_eq!(vm.end().code(), Some(0));
}

fn startup_work_is_not_repeated() {
    let scene = Scene::new();
    scene.write("serial", "earlier\n");
    scene.write("log", "earlier\n");
    let mut vm = scene.start(
        "--kernel DIR/heartbeat --memory 16M --serial file:DIR/serial --log info \
         --log-file DIR/log --pid-file DIR/pid",
    );
    let mut qmp = vm.qmp();
    let made = ["pid", "qmp", "serial"];
    let before = made.map(|name| process::identity(&scene.path(name)));
    let log = scene.path("log");
    let (inode, text) = (fs::metadata(&log).unwrap().ino(), fs::read_to_string(&log).unwrap());
    vm.update(&mut qmp);
    assert_eq!(made.map(|name| process::identity(&scene.path(name))), before);
    assert_eq!(fs::metadata(&log).unwrap().ino(), inode);
    let whole = fs::read_to_string(&log).unwrap();
    assert!(whole.starts_with(&text) && text.starts_with("earlier\n"), "{whole}");
    for point in ["cpr_state_save", "cpr_exec", "cpr_adopt", "cpr_state_load"] {
        assert!(whole.contains(point), "no {point} in {whole}");
    }
    assert_eq!(vm.stderr(), "");
}

fn signal_settings_survive_updates() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let before = process::signals(vm.pid());
    assert_eq!(before.len(), 3, "{before:?}");
    for _ in 0..2 {
        vm.update(&mut qmp);
        assert_eq!(process::signals(vm.pid()), before);
    }
}

/// An exec would kill a vCPU thread in the handler.
fn vcpu_threads_block_end_signals() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let bit = |signal: &Signal| 1 << (*signal as i32 - 1);
    let ending: u64 = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].iter().map(bit).sum();
    for _ in 0..2 {
        // The thread may not have blocked them yet.
        until("the mask of the vCPU's thread", || match process::blocked_by(vm.pid(), "vcpu0") {
            blocked if blocked == [ending] => Ok(()),
            other => Err(other),
        });
        vm.update(&mut qmp);
    }
}

fn updates_leave_nothing_behind() {
    let scene = Scene::new();
    let mut vm = scene
        .start(&format!("{GUEST} --cpus 2 --serial unix:DIR/serial --log info --log-file DIR/log"));
    let mut qmp = vm.qmp();
    let kept = kept_descriptors(&vm);
    let count = close_on_exec_is_set(&vm);
    for _ in 0..2 {
        vm.update(&mut qmp);
        assert_eq!(process::children(vm.pid()), [0; 0]);
        let environment = process::environment(vm.pid());
        assert!(!environment.iter().any(|text| text.contains("CPR_EXEC")), "{environment:?}");
        assert_eq!(kept_descriptors(&vm), kept);
        assert_eq!(close_on_exec_is_set(&vm), count);
    }
}

/// Returns the files and memfds that the VMM has open.
fn kept_descriptors(vm: &Vm<'_>) -> Vec<String> {
    let descriptors = process::descriptors(vm.pid()).into_values();
    let mut targets: Vec<_> = descriptors.map(|(target, _)| target).collect();
    targets.retain(|target| target.starts_with('/'));
    targets.sort();
    targets
}

/// Checks that all descriptors but the first three are close-on-exec, and counts them.
fn close_on_exec_is_set(vm: &Vm<'_>) -> usize {
    let mut descriptors = process::descriptors(vm.pid());
    descriptors.retain(|number, _| *number > 2);
    assert!(descriptors.values().all(|(_, close_on_exec)| *close_on_exec), "{descriptors:#?}");
    descriptors.len()
}

fn failed_exec_changes_nothing() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --serial unix:DIR/serial"));
    let mut qmp = vm.qmp();
    let look = |vm: &Vm<'_>| {
        let pid = vm.pid();
        (process::descriptors(pid), process::signals(pid), process::children(pid))
    };
    close_on_exec_is_set(&vm);
    let (before, files) = (look(&vm), scene.files());
    qmp.rehearsal = false;
    let status = qmp.update(&["/nowhere/cpr-vmm".to_owned()], &vm.state_file());
    assert_eq!(status, MigrationStatus::Failed);
    // An update's keeper is gone before the first answer after the update's end.
    assert_eq!(qmp.run_state(), RunState::Running);
    assert_eq!(look(&vm), before);
    assert_eq!(scene.files(), files, "the failed update left a file");
    qmp.rehearsal = true;
    vm.update(&mut qmp);
}

fn failed_updates_say_why() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    qmp.rehearsal = false;
    let nothing = vec!["/nowhere/cpr-vmm".to_owned()];
    let state = vm.state_file();
    let mut story = Vec::new();
    let mut tell = |what: &str, answer: &dyn std::fmt::Debug, qmp: &mut Qmp| {
        story.push(format!("{what}: {answer:?}"));
        story.extend(qmp.take_events().iter().map(|event| format!("  {event:?}")));
        story.push(format!("  {:?}, {:?}", qmp.run_state(), qmp.migration()));
    };
    let refused = qmp.begin_update(&[], &state).expect_err("there is no command");
    tell("refused", &refused, &mut qmp);
    qmp.begin_update(&nothing, &state).expect("the command is not checked before");
    // Once this is answered, the failed update is finished.
    qmp.run_state();
    tell("failed", &nothing, &mut qmp);
    let refused = qmp.begin_update(&[], &state).expect_err("there is no command");
    tell("refused after that", &refused, &mut qmp);
    qmp.done(Command::Stop);
    qmp.take_events();
    qmp.begin_update(&nothing, &state).expect("the command is not checked before");
    qmp.run_state();
    tell("failed while stopped", &nothing, &mut qmp);
    insta::with_settings!({ prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("failed_updates", scene.redact(&story.join("\n")));
    });
}

fn incoming(file: &std::path::Path, exit_on_error: Option<bool>) -> Command {
    let uri = Some(format!("file:{}", file.display()));
    Command::MigrateIncoming(MigrateIncomingArgs { uri, channels: None, exit_on_error })
}

/// Starts a VMM, updates it, and updates it again so that it waits for a state.
fn deferred<'a>(scene: &'a Scene, arguments: &str) -> (Vm<'a>, Qmp) {
    let mut vm = scene.start(arguments);
    let mut qmp = vm.qmp();
    vm.update(&mut qmp);
    fs::copy(vm.state_file(), scene.path("older")).expect("an update leaves its state file");
    qmp.begin_update(&vm.command_again("defer"), &vm.state_file()).expect("the update is accepted");
    assert_eq!(qmp.run_state(), RunState::Inmigrate);
    (vm, qmp)
}

fn deferred_load_can_be_retried() {
    let scene = Scene::new();
    let (vm, mut qmp) = deferred(&scene, GUEST);
    qmp.take_events();
    scene.write("garbage", "no state");
    let mut errors = Vec::new();
    let mut refused = |qmp: &mut Qmp, command| {
        errors.push(scene.redact(&qmp.execute(command).expect_err("it must be refused").desc));
    };
    for wrong in ["missing", "garbage", "older"] {
        refused(&mut qmp, incoming(&scene.path(wrong), Some(false)));
    }
    refused(&mut qmp, Command::Cont);
    refused(&mut qmp, Command::SystemReset);
    assert_eq!(qmp.run_state(), RunState::Inmigrate);
    qmp.done(incoming(&vm.state_file(), Some(false)));
    qmp.event("MIGRATION completed", |event| {
        (event.migration_status() == Some(MigrationStatus::Completed)).then_some(())
    });
    assert_eq!(qmp.run_state(), RunState::Running);
    refused(&mut qmp, incoming(&vm.state_file(), None));
    insta::with_settings!({ prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("deferred_states", errors.join("\n"));
    });
    vm.update(&mut qmp);
}

/// Checks that the old program continues the VM after a fallback, reports `why`, and can be
/// updated.
fn gave_back(scene: &Scene, mut vm: Vm<'_>, qmp: &mut Qmp, why: &str) {
    qmp.event("MIGRATION failed", |event| {
        (event.migration_status() == Some(MigrationStatus::Failed)).then_some(())
    });
    qmp.event("RESUME", |event| (event == EventKind::Resume).then_some(()));
    assert_eq!(qmp.run_state(), RunState::Running);
    let error = qmp.migration().error_desc.expect("a failure says why");
    assert!(error.contains(why), "{error}");
    assert_eq!(process::children(vm.pid()), [0; 0]);
    let environment = process::environment(vm.pid());
    assert!(!environment.iter().any(|text| text.contains("CPR_EXEC")), "{environment:?}");
    qmp.rehearsal = true;
    vm.update(qmp);
    qmp.done(Command::Quit);
    assert_eq!(vm.end().code(), Some(0), "{}", vm.stderr());
    let files = scene.files();
    for path in ["qmp", "serial", "pid"] {
        assert!(!files.iter().any(|file| file == path), "{path} is left: {files:?}");
    }
}

fn failed_deferred_load_falls_back() {
    let scene = Scene::new();
    let arguments = format!("{GUEST} --serial unix:DIR/serial --pid-file DIR/pid");
    let (mut vm, mut qmp) = deferred(&scene, &arguments);
    // Clients that connect and disconnect while the new program waits.
    let mut late = vm.qmp();
    assert_eq!(late.run_state(), RunState::Inmigrate);
    drop(vm.qmp());
    // A refused command must not disarm the fallback.
    let command = vm.command_again("file:DIR/state");
    let refused = qmp.begin_update(&command, &vm.state_file()).expect_err("not possible now");
    assert!(refused.desc.contains("incoming migration"), "{}", refused.desc);
    qmp.execute(incoming(&scene.path("older"), Some(false))).expect_err("it must be refused");
    let error =
        qmp.execute(incoming(&scene.path("missing"), None)).expect_err("it must be refused");
    assert!(error.desc.contains("No such file or directory (os error 2)"), "{}", error.desc);
    gave_back(&scene, vm, &mut qmp, "DIR/missing".replace("DIR", scene.dir()).as_str());
    assert!(late.take_events().is_empty());
    late.event("SHUTDOWN", |event| matches!(event, EventKind::Shutdown { .. }).then_some(()));
}

fn failed_takeover_falls_back() {
    let scene = Scene::new();
    let arguments = format!("{GUEST} --serial unix:DIR/serial --pid-file DIR/pid");
    let mut vm = scene.start(&arguments);
    let mut qmp = vm.qmp();
    qmp.rehearsal = false;
    qmp.begin_update(&vm.command_again("file:DIR/missing"), &vm.state_file())
        .expect("the old program does not check the arguments");
    gave_back(&scene, vm, &mut qmp, "No such file or directory (os error 2)");
}

/// If even the old program cannot continue the guest, another one can, from the files that it left.
fn stranded_guest_can_be_rescued() {
    let scene = Scene::new();
    let arguments = format!("{GUEST} --keeper off --serial file:DIR/serial --log-file DIR/log");
    let mut vm = scene.start(&arguments);
    let mut qmp = vm.qmp();
    scene.update_without_descriptors(&vm, &mut qmp);
    let said = until("the final message", || {
        let said = vm.stderr();
        if said.ends_with('\n') { Ok(said) } else { Err(said) }
    });
    assert_eq!(said.lines().count(), 1, "{said}");
    let word_after = |name: &str| {
        let at = said.find(name).unwrap_or_else(|| panic!("no {name} in {said}"));
        said[at + name.len()..].split_whitespace().next().unwrap().trim_end_matches(',').to_owned()
    };
    let (state, ram) = (word_after("--incoming "), word_after("--incoming-ram "));
    let mut rescued = scene.start(&format!(
        "{GUEST} --serial file:DIR/serial --incoming {state} --incoming-ram {ram}"
    ));
    let mut other = rescued.qmp();
    assert_eq!(other.run_state(), RunState::Running);
    process::send(vm.pid(), Signal::SIGTERM);
    assert!(!vm.end().success());
    other.update(&vm.command_again("file:DIR/state"), &vm.state_file());
    other.done(Command::Quit);
    assert_eq!(rescued.end().code(), Some(0), "{}", rescued.stderr());
}
