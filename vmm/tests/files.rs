//! Tests which files the VMM opens, writes, locks and removes, and which it leaves alone.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command as Program, ExitCode};

use cpr_qmp::command::{Command, PmemsaveArgs};
use cpr_qmp::event::EventKind;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use support::trials::{self, Missing, kvm, trial, trials};
use support::{PATIENCE, Qmp, Scene, Vm, process, until};

fn main() -> ExitCode {
    let mut tests = trials![kvm();
        vmm_refuses_to_write_to_its_own_files,
        refused_update_leaves_the_state_file_alone,
        state_file_must_be_a_private_regular_file,
        state_file_is_private_and_removed_on_failure,
        crash_removes_no_foreign_file,
        saved_memory_is_private,
        fifo_is_refused_without_waiting,
        other_clients_are_served_while_memory_is_saved,
        pid_file_moves_with_the_option,
        ram_of_a_running_guest_cannot_be_taken,
    ];
    tests.push(trial("update_works_without_proc", as_root(), update_works_without_proc));
    let name = "vmm_starts_with_memfd_noexec";
    tests.push(trial(name, as_root(), vmm_starts_with_memfd_noexec));
    trials::run(tests)
}

const GUEST: &str = "--kernel DIR/heartbeat --memory 16M";

fn as_root() -> Missing {
    let root = nix::unistd::geteuid().is_root();
    kvm().or_else(|| (!root).then(|| "needs root, for namespaces".to_owned()))
}

/// Returns the VMM's descriptor whose target in `/proc` contains `name`.
fn descriptor(vm: &Vm<'_>, name: &str) -> i32 {
    let open = process::descriptors(vm.pid());
    let found = open.iter().find(|(_, (target, _))| target.contains(name));
    *found.unwrap_or_else(|| panic!("no {name} in {open:?}")).0
}

fn pmemsave(size: u64, to: &Path) -> Command {
    Command::Pmemsave(PmemsaveArgs { val: 0, size, filename: to.display().to_string() })
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("the file exists").permissions().mode() & 0o7777
}

/// Checks that the guest can be reset and runs.
fn is_whole(qmp: &mut Qmp) {
    qmp.done(Command::SystemReset);
    qmp.event("RESET", |event| matches!(event, EventKind::Reset { .. }).then_some(()));
    assert_eq!(qmp.run_state(), RunState::Running);
}

fn vmm_refuses_to_write_to_its_own_files() {
    for follow in ["on", "off"] {
        let scene = Scene::new();
        scene.write("hostile.log", "");
        let mut vm = scene.start(&format!(
            "{GUEST} --follow-symlinks {follow} --serial file:DIR/serial --log-file DIR/hostile.log"
        ));
        let mut qmp = vm.qmp();
        qmp.rehearsal = false;
        let words = vm.command_again("file:DIR/state");
        let mut paths = Vec::new();
        for name in ["memfd:pc.ram", "memfd:boot.kernel", "/serial", "hostile.log"] {
            let number = descriptor(&vm, name);
            paths.push(format!("/proc/self/fd/{number}").into());
            paths.push(format!("/proc/{}/fd/{number}", vm.pid()).into());
        }
        paths.extend([scene.path("serial"), scene.path("hostile.log")]);
        for path in &paths {
            let expected = match path.starts_with("/proc") && follow == "off" {
                true => "it is a symbolic link",
                false => "this VMM itself has it open",
            };
            let refused = qmp.begin_update(&words, path).expect_err("it must be refused").desc;
            assert!(refused.contains(expected), "{path:?}: {refused}");
            let refused = qmp.execute(pmemsave(4096, path)).expect_err("it must be refused").desc;
            assert!(refused.contains(expected), "{path:?}: {refused}");
        }
        is_whole(&mut qmp);
        vm.update(&mut qmp);
        is_whole(&mut qmp);
    }
}

fn refused_update_leaves_the_state_file_alone() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let state = vm.state_file();
    let before = scene.files();
    qmp.begin_update(&["true".to_owned()], &state).expect_err("`true` is not a VMM");
    assert_eq!(scene.files(), before);
    scene.write("state", "of an earlier update");
    let identity = process::identity(&state);
    qmp.begin_update(&["true".to_owned()], &state).expect_err("`true` is not a VMM");
    assert_eq!(fs::read(&state).unwrap(), b"of an earlier update");
    assert_eq!(process::identity(&state), identity);
    vm.update(&mut qmp);
    assert_ne!(process::identity(&state), identity);
}

fn state_file_must_be_a_private_regular_file() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let words = vm.command_again("file:DIR/state");
    let state = vm.state_file();
    let mut refused = |expected: &str| {
        let refused = qmp.begin_update(&words, &state).expect_err("it must be refused").desc;
        assert!(refused.contains(expected), "{refused}");
    };
    let precious = scene.write("precious", "precious");
    symlink(&precious, &state).unwrap();
    refused("it is a symbolic link");
    fs::remove_file(&state).unwrap();
    nix::unistd::mkfifo(&state, Mode::S_IRWXU).unwrap();
    refused("it is not a regular file");
    assert!(fs::metadata(&state).unwrap().file_type().is_fifo());
    fs::remove_file(&state).unwrap();
    scene.write("state", "old");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o666)).unwrap();
    refused("every user may write to it (mode 0666)");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o600)).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&state, Some(1234), None).unwrap();
        refused("it belongs to user 1234");
        std::os::unix::fs::chown(&state, Some(0), None).unwrap();
    }
    assert_eq!(fs::read(&state).unwrap(), b"old");
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    vm.update(&mut qmp);
}

fn state_file_is_private_and_removed_on_failure() {
    let scene = Scene::new();
    let mut vm = scene.start_with(GUEST, |program| {
        // SAFETY: a system call on a number.
        unsafe {
            program.pre_exec(|| {
                libc::umask(0);
                Ok(())
            })
        };
    });
    let mut qmp = vm.qmp();
    let state = vm.state_file();
    scene.write("state", "much longer than nothing");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o644)).unwrap();
    vm.update(&mut qmp);
    assert_eq!(mode(&state), 0o600);
    qmp.rehearsal = false;
    assert_eq!(qmp.update(&["/nowhere/vmm".to_owned()], &state), MigrationStatus::Failed);
    assert!(!state.exists(), "a failed update left its state");
    let files = scene.files();
    assert!(!files.iter().any(|name| name.starts_with('.')), "{files:?}");
}

fn crash_removes_no_foreign_file() {
    let scene = Scene::new();
    let fifo = scene.path("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let points = "--failpoint state=hold=DIR/fifo --failpoint exec=segv";
    let mut vm = scene.start(&format!("{GUEST} {points}"));
    let mut qmp = vm.qmp();
    qmp.rehearsal = false;
    let state = vm.state_file();
    qmp.begin_update(&vm.command_again("file:DIR/state"), &state).expect("the update is accepted");
    let held = fs::File::options().write(true).open(&fifo).expect("the VMM reads from it");
    assert_eq!(mode(&state), 0o600);
    let precious = scene.write("precious", "precious");
    fs::remove_file(&state).unwrap();
    symlink(&precious, &state).unwrap();
    drop(held);
    qmp.event("MIGRATION failed", |event| {
        (event.migration_status() == Some(MigrationStatus::Failed)).then_some(())
    });
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert!(state.is_symlink());
    fs::remove_file(&state).unwrap();
    is_whole(&mut qmp);
    vm.update(&mut qmp);
}

fn saved_memory_is_private() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --paused"));
    let mut qmp = vm.qmp();
    let file = scene.path("memory");
    qmp.done(pmemsave(0, &file));
    assert_eq!((fs::read(&file).unwrap(), mode(&file)), (Vec::new(), 0o600));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    qmp.done(pmemsave(16 << 20, &file));
    assert_eq!(mode(&file), 0o600);
    let ram = format!("/proc/{}/fd/{}", vm.pid(), descriptor(&vm, "memfd:pc.ram"));
    assert_eq!(mode(ram.as_ref()) & 0o111, 0, "RAM is executable");
    assert!(fs::read(&file).unwrap() == fs::read(&ram).unwrap(), "not the content of RAM");
    let precious = scene.write("precious", "precious");
    symlink(&precious, scene.path("link")).unwrap();
    let mut errors = Vec::new();
    for (size, name) in [(1, "link"), (1, "."), (1, "missing/file"), (17 << 20, "memory")] {
        let refused =
            qmp.execute(pmemsave(size, &scene.path(name))).expect_err("it must be refused");
        errors.push(scene.redact(&refused.desc));
    }
    insta::assert_snapshot!(errors.join("\n"), @r"
    cannot save memory to DIR/link: it is a symbolic link: name the file it points to, or start the VMM with --follow-symlinks on
    cannot save memory to DIR/.: Is a directory (os error 21)
    cannot save memory to DIR/missing/file: No such file or directory (os error 2)
    cannot save memory to DIR/memory: 0x0 + 0x1100000 is not all RAM
    ");
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    assert_eq!(fs::metadata(&file).unwrap().len(), 16 << 20);
    vm.update(&mut qmp);
}

fn fifo_is_refused_without_waiting() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let fifo = scene.path("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let refused = qmp.execute(pmemsave(4096, &fifo)).expect_err("it must be refused").desc;
    assert!(refused.ends_with("it is not a regular file"), "{refused}");
}

fn other_clients_are_served_while_memory_is_saved() {
    let scene = Scene::new();
    // Large enough that writing takes longer than some commands.
    let mut vm = scene.start("--kernel DIR/heartbeat --memory 512M");
    let (mut saving, mut other) = (vm.qmp(), vm.qmp());
    saving.send(pmemsave(512 << 20, &scene.path("memory")));
    // On the same connection: answered after it.
    saving.send(Command::QueryStatus);
    assert_eq!(other.run_state(), RunState::Running);
    let words = vm.command_again("file:DIR/state");
    let refused = other.begin_update(&words, &vm.state_file()).expect_err("saving").desc;
    assert_eq!(
        refused,
        "cannot update: guest memory is being saved (pmemsave); retry when it is done"
    );
    let silent = saving.is_silent();
    assert_eq!(saving.answer("the end of pmemsave").expect("it succeeds").to_string(), "{}");
    assert!(silent, "512 MiB were saved before the others were served");
    let status = saving.answer("query-status").expect("it succeeds").to_string();
    assert!(status.contains("running"), "{status}");
    assert_eq!(fs::metadata(scene.path("memory")).unwrap().len(), 512 << 20);
    vm.update(&mut other);
}

fn pid_file_moves_with_the_option() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("{GUEST} --pid-file DIR/pid"));
    let mut qmp = vm.qmp();
    let ours = format!("{}\n", vm.pid());
    let is_in = |name: &str| fs::read_to_string(scene.path(name)).is_ok_and(|text| text == ours);
    let changed = |to: &str, incoming: &str| {
        let words = vm.command_again(incoming).into_iter();
        words.map(|word| word.replace(&format!("{}/pid", scene.dir()), to)).collect::<Vec<_>>()
    };
    // Only a successful takeover may move the PID file.
    let other = scene.path("other").display().to_string();
    qmp.rehearsal = false;
    let failed = qmp.update(&changed(&other, "file:DIR/missing"), &vm.state_file());
    assert_eq!(failed, MigrationStatus::Failed);
    assert!(is_in("pid") && !scene.path("other").exists());
    qmp.rehearsal = true;
    let update = |qmp: &mut Qmp, to: &str| {
        let updated = qmp.update(&changed(to, "file:DIR/state"), &vm.state_file());
        assert_eq!(updated, MigrationStatus::Completed);
    };
    update(&mut qmp, &other);
    assert!(is_in("other") && !scene.path("pid").exists());
    let nowhere = scene.path("missing/pid").display().to_string();
    update(&mut qmp, &nowhere);
    assert!(is_in("other"), "the existing file is kept if the new one cannot be written");
    update(&mut qmp, &scene.path("pid").display().to_string());
    assert!(is_in("pid") && !scene.path("other").exists());
    qmp.done(Command::Quit);
    assert_eq!(vm.end().code(), Some(0), "{}", vm.stderr());
    assert!(!scene.path("pid").exists());
}

fn ram_of_a_running_guest_cannot_be_taken() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    for updated in [true, false] {
        let ram = format!("/proc/{}/fd/{}", vm.pid(), descriptor(&vm, "memfd:pc.ram"));
        if updated {
            vm.update(&mut qmp);
        }
        let mut second = scene.command(&format!(
            "{GUEST} --incoming file:DIR/state --incoming-ram {ram} --qmp unix:DIR/second"
        ));
        second.stdin(std::process::Stdio::null());
        let output = assert_cmd::Command::from_std(second).timeout(PATIENCE).output();
        let output = output.expect("the VMM can be started");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        let expected =
            format!("--incoming-ram: cannot take over the guest in {ram}: another process runs it");
        assert!(said.contains(&expected), "{said}");
        is_whole(&mut qmp);
    }
}

/// Hides `/proc`, in a new mount namespace.
fn without_proc() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE)?;
    mount(c"none", c"/proc", Some(c"tmpfs"), 0)
}

fn mount(from: &CStr, at: &CStr, kind: Option<&CStr>, flags: libc::c_ulong) -> io::Result<()> {
    let kind = kind.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: all are NUL-terminated or null; the kernel keeps no pointer.
    let result = unsafe { libc::mount(from.as_ptr(), at.as_ptr(), kind, flags, std::ptr::null()) };
    Ok(Errno::result(result).map(drop)?)
}

fn update_works_without_proc() {
    let scene = Scene::new();
    let arguments = format!("{GUEST} --serial unix:DIR/serial --pid-file DIR/pid");
    let mut vm = scene.start_with(&arguments, |program| {
        // SAFETY: system calls on strings of their own.
        unsafe { program.pre_exec(without_proc) };
    });
    let mut qmp = vm.qmp();
    let before = process::descriptors(vm.pid());
    vm.update(&mut qmp);
    qmp.rehearsal = false;
    vm.update(&mut qmp);
    // Fall back to the old program, which is then executed by its descriptor.
    for _ in 0..2 {
        let words = vm.command_again("file:DIR/missing");
        assert_eq!(qmp.update(&words, &vm.state_file()), MigrationStatus::Failed);
        assert_eq!(qmp.run_state(), RunState::Running);
        let error = qmp.migration().error_desc.expect("a failure says why");
        assert!(error.contains("No such file or directory (os error 2)"), "{error}");
    }
    vm.update(&mut qmp);
    until("the number of descriptors from before", || {
        let now = process::descriptors(vm.pid());
        // The numbers may differ.
        if now.len() == before.len() { Ok(()) } else { Err(now) }
    });
    qmp.done(Command::Quit);
    assert_eq!(vm.end().code(), Some(0), "{}", vm.stderr());
}

fn vmm_starts_with_memfd_noexec() {
    let scene = Scene::new();
    let mut command = Program::new("unshare");
    let script = format!(
        "echo 2 >/proc/sys/vm/memfd_noexec || exit 77\n\
         {} --kernel {dir}/heartbeat --memory 16M --qmp unix:{dir}/qmp & wait",
        env!("CARGO_BIN_EXE_cpr-vmm"),
        dir = scene.dir(),
    );
    command.args(["-p", "-f", "--mount-proc", "--kill-child", "sh", "-c", &script]);
    let stderr = fs::File::create(scene.path("stderr")).unwrap();
    let mut child = command.stderr(stderr).spawn().expect("unshare can be started");
    let said = || fs::read_to_string(scene.path("stderr")).unwrap_or_default();
    let stream = until("the QMP socket", || {
        if let Some(status) = child.try_wait().expect("it is our child") {
            return Ok(Err(status));
        }
        std::os::unix::net::UnixStream::connect(scene.path("qmp")).map(Ok)
    });
    let mut qmp = match stream {
        Ok(stream) => Qmp::new(stream),
        // The kernel lacks the setting.
        Err(status) if status.code() == Some(77) => return,
        Err(status) => panic!("{status}: {}", said()),
    };
    let words = scene.words(&format!(
        "{} {GUEST} --qmp unix:DIR/qmp --incoming file:DIR/state",
        env!("CARGO_BIN_EXE_cpr-vmm")
    ));
    assert_eq!(qmp.update(&words, &scene.path("state")), MigrationStatus::Completed);
    qmp.done(Command::Quit);
    let status = until("the end of the VMM", || {
        child.try_wait().expect("it is our child").ok_or("still running")
    });
    assert!(status.success(), "{status}: {}", said());
}
