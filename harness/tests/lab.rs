//! Tests of the lab: the ways in which it starts, runs a command, and ends.
//!
//! Most need QEMU and a kernel, and boot it: 10 to 60 s each.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use cpr_harness::backend::qemu;
use cpr_harness::kernels::Kernels;
use libtest_mimic::{Arguments, Failed, Trial};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

type Tested = Result<(), Failed>;
type Test = fn() -> Tested;

/// How long a lab may take to end after Ctrl-C: 2 s, but this host may be busy with other tests.
const ENDED: Duration = Duration::from_secs(8);

/// How long a lab may take to show what a test waits for, its start included.
const SHOWN: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    let lacks = lacks();
    let real: [(&str, Test); 6] = [
        ("streams_and_status_are_those_of_the_command", streams_and_status),
        ("scenarios_run_without_kvm_and_leave_evidence_outside", scenarios_without_kvm),
        ("interrupted_lab_leaves_nothing_behind", interrupted),
        ("panic_of_the_kernel_is_reported", panic),
        ("shell_has_a_terminal", shell),
        ("escape_key_ends_a_shell_that_hangs", escape),
    ];
    let mut trials: Vec<Trial> = real
        .map(|(name, test)| match &lacks {
            None => Trial::test(name, test),
            Some(why) => missing(name, why),
        })
        .into();
    trials.push(Trial::test("missing_kernel_is_reported", missing_kernel));
    trials.push(Trial::test("invalid_command_is_reported_before_the_start", invalid_command));
    trials.push(Trial::test("qemu_that_fails_is_reported", failing_qemu));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// What is missing here for a lab, if something is.
fn lacks() -> Option<String> {
    let kernels = Kernels::find().err().map(|e| e.to_string());
    let qemu = || qemu::find_anywhere().is_none().then(|| "no QEMU: run ci/install-qemu".into());
    kernels.or_else(qemu)
}

/// A test that fails if everything must run, as in CI, or else is reported as ignored.
fn missing(name: &str, why: &str) -> Trial {
    let text = format!("needs a lab: {why}");
    let ignored = !cpr_harness::run::requirements::all_required();
    let trial = Trial::test(name, move || Err(text.into()));
    if ignored { trial.with_kind("run ci/install-lab").with_ignored_flag(true) } else { trial }
}

/// A folder to run in, and one for temporary files, which is empty again when a lab has ended.
struct Place {
    folder: TempDir,
    temporary: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = || tempfile::tempdir().unwrap();
        Self { folder: folder(), temporary: folder() }
    }

    fn lab(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cpr-harness"));
        // Bounds every wait of a test.
        self.prepare(&mut command).args(["lab", "--timeout", "4m"]).args(arguments);
        command
    }

    fn prepare<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .current_dir(self.folder.path())
            .env("TMPDIR", self.temporary.path())
            .env_remove("GITHUB_ACTIONS")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
    }

    /// Runs a shell in a lab, which reads `script`.
    fn shell(&self, script: &str) -> Output {
        let mut child = self.lab(&["--shell"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// What is left of a lab: its files, and processes that name them.
    fn left(&self) -> Vec<String> {
        let files = fs::read_dir(self.temporary.path()).unwrap();
        let mut left: Vec<_> =
            files.map(|file| file.unwrap().path().display().to_string()).collect();
        let needle = self.temporary.path().display().to_string();
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains(&needle) {
                left.push(line);
            }
        }
        left
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn streams_and_status() -> Tested {
    let place = Place::new();
    let done = place.shell(
        "echo to stderr >&2\nseq 100000\necho kept >file\n\
         for each in kvm net/tun vhost-net vhost-vsock pts/ptmx; do test -c /dev/$each || echo no $each; done\n\
         cat /sys/fs/cgroup/cgroup.subtree_control >controllers\nsleep 1000 &\nexit 7\n",
    );
    let (out, err) = (text(&done.stdout), text(&done.stderr));
    assert_eq!(done.status.code(), Some(7), "{out}\n{err}");
    let numbers: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(out == numbers, "{} bytes: {out:.200}", out.len());
    let (first, rest) = err.split_once('\n').unwrap();
    assert!(first.starts_with("cpr-harness: lab: Linux "), "{err}");
    assert_eq!(rest, "to stderr\n");
    let file = |name: &str| fs::read_to_string(place.folder.path().join(name)).unwrap();
    assert_eq!(file("file"), "kept\n");
    assert!(file("controllers").contains("memory"), "{}", file("controllers"));
    assert_eq!(place.left(), [""; 0]);
    Ok(())
}

/// Runs the harness where `/dev/kvm` is `/dev/null`, if this process may mount that.
fn scenarios_without_kvm() -> Tested {
    let place = Place::new();
    let scenario = "summary = \"updated\"\nsteps = [\"boot\", { migrate = {} }, \"quit\"]\n";
    let theme = place.folder.path().join("scenarios/theme");
    fs::create_dir_all(&theme).unwrap();
    fs::write(theme.join("updated.toml"), scenario).unwrap();
    let hide = "{ [ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm; } && exec \"$@\"";
    let mut command = Command::new("unshare");
    place
        .prepare(&mut command)
        .args(["--map-root-user", "--mount", "sh", "-c", hide, "sh"])
        .arg(env!("CARGO_BIN_EXE_cpr-harness"))
        .args(["lab", "run", "--json", "run.json"]);
    let done = command.output().unwrap();
    let (out, err) = (text(&done.stdout), text(&done.stderr));
    assert_eq!(done.status.code(), Some(0), "{out}\n{err}");
    assert!(out.contains("\n1 ran, 1 passed, 0 failed"), "{out}");
    assert!(out.contains("emulated host: blackouts are not measured"), "{out}");
    assert!(!out.contains(" ms "), "{out}");
    let record = fs::read_to_string(place.folder.path().join("run.json")).unwrap();
    assert!(record.contains("theme/updated") && record.contains("QEMU TCG CPU"), "{record}");
    assert!(place.folder.path().join("evidence/theme/updated/verdict.json").exists());
    assert_eq!(place.left(), [""; 0]);
    Ok(())
}

fn interrupted() -> Tested {
    let place = Place::new();
    let mut child = place.lab(&["--shell"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // A shell that ignores the signal does not delay the end.
    writeln!(input, "trap '' INT; echo ready; while :; do sleep 1000; done").unwrap();
    let mut output = child.stdout.take().unwrap();
    await_text(&mut child, &mut output, "ready\n");
    assert!(!place.left().is_empty());
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let asked = Instant::now();
    let status = child.wait().unwrap();
    let took = asked.elapsed();
    assert_eq!(status.code(), Some(130));
    assert!(took < ENDED, "{took:?}");
    assert_eq!(place.left(), [""; 0]);
    Ok(())
}

fn panic() -> Tested {
    let place = Place::new();
    let done = place.shell("echo c >/proc/sysrq-trigger\n");
    let err = text(&done.stderr);
    assert_eq!(done.status.code(), Some(3), "{err}");
    assert!(err.contains("the lab ended without a result"), "{err}");
    assert!(err.contains("its kernel panicked - not syncing: sysrq triggered crash"), "{err}");
    // The log is named and kept, without the initramfs.
    let log = err.split("console: ").nth(1).and_then(|rest| rest.lines().next()).unwrap();
    assert!(fs::read_to_string(log).unwrap().contains("Kernel panic"), "{log}");
    assert!(!Path::new(log).with_file_name("initramfs").exists());
    Ok(())
}

fn shell() -> Tested {
    let place = Place::new();
    let size = Winsize { ws_row: 31, ws_col: 97, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(Some(&size), None).unwrap();
    let end = || Stdio::from(terminal.slave.try_clone().unwrap());
    let mut lab = place.lab(&["--shell"]);
    lab.stdin(end()).stdout(end()).stderr(end());
    let mut child = lab.spawn().unwrap();
    drop((lab, terminal.slave));
    let pid = Pid::from_raw(child.id() as i32);
    let mut master = File::from(terminal.master);
    let mut seen = await_text(&mut child, &mut master, "# ");
    // The terminal inside edits lines, and makes the key a signal.
    let mut type_line = |master: &mut File, line: &str, wanted: &str| {
        master.write_all(format!("{line}\n").as_bytes()).unwrap();
        seen += &await_text(&mut child, master, wanted);
    };
    type_line(&mut master, "stty size", "\r\n31 97");
    type_line(&mut master, "", "# ");
    let smaller = Winsize { ws_row: 30, ws_col: 90, ..size };
    // SAFETY: the kernel reads the structure, which lives until the call returns.
    let done = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const smaller) };
    assert_eq!(done, 0);
    kill(pid, Signal::SIGWINCH).unwrap();
    // It arrives some time later.
    type_line(&mut master, "until stty size | grep '30 90'; do :; done", "\r\n30 90");
    type_line(&mut master, "", "# ");
    type_line(&mut master, "echo beg''un; sleep 1000", "begun");
    type_line(&mut master, "\x03", "# ");
    master.write_all(b"exit 5\n").unwrap();
    let mut rest = Vec::new();
    // The end of a terminal is reported as an error.
    let _ = master.read_to_end(&mut rest);
    assert_eq!(child.wait().unwrap().code(), Some(5), "{seen}{}", text(&rest));
    assert_eq!(place.left(), [""; 0]);
    Ok(())
}

fn escape() -> Tested {
    let place = Place::new();
    let terminal = openpty(None, None).unwrap();
    let end = || Stdio::from(terminal.slave.try_clone().unwrap());
    let mut lab = place.lab(&["--shell"]);
    lab.stdin(end()).stdout(end()).stderr(end());
    let mut child = lab.spawn().unwrap();
    drop((lab, terminal.slave));
    let mut master = File::from(terminal.master);
    await_text(&mut child, &mut master, "# ");
    master.write_all(b"trap '' INT TERM; echo beg''un; while :; do :; done\n").unwrap();
    await_text(&mut child, &mut master, "begun");
    let pressed = Instant::now();
    master.write_all(b"\x1d").unwrap();
    let _ = master.read_to_end(&mut Vec::new());
    assert_eq!(child.wait().unwrap().code(), Some(128 + Signal::SIGTERM as i32));
    assert!(pressed.elapsed() < ENDED, "{:?}", pressed.elapsed());
    assert_eq!(place.left(), [""; 0]);
    Ok(())
}

/// Reads until `wanted` appears; returns what was read.
fn await_text(child: &mut Child, from: &mut (impl Read + AsFd), wanted: &str) -> String {
    let deadline = Instant::now() + SHOWN;
    let mut seen = Vec::new();
    while !text(&seen).contains(wanted) {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap();
        let mut readable = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut readable, left) == Ok(1);
        let mut byte = [0];
        if ready && matches!(from.read(&mut byte), Ok(1)) {
            seen.extend(byte);
            continue;
        }
        let _ = child.kill();
        let (status, mut error) = (child.wait(), String::new());
        child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut error));
        panic!("no {wanted:?} within {SHOWN:?}: saw {:?}, {status:?}, {error}", text(&seen));
    }
    text(&seen)
}

fn missing_kernel() -> Tested {
    let place = Place::new();
    let done = place.lab(&["doctor"]).env("CPR_KERNELS", place.folder.path()).output().unwrap();
    let err = text(&done.stderr);
    assert_eq!(done.status.code(), Some(3), "{err}");
    let why = ["no kernel in ", "run ci/install-lab", "no QEMU in "];
    assert!(why.iter().any(|why| err.contains(why)), "{err}");
    Ok(())
}

fn invalid_command() -> Tested {
    let place = Place::new();
    for (arguments, why) in [
        (&["run", "--filtr", "x"][..], "unexpected argument '--filtr'"),
        (&["lab", "doctor"], "cannot run a lab in a lab"),
        (&[], "required arguments were not provided"),
        (&["--memory", "64M", "doctor"], "a lab needs at least 1G"),
    ] {
        let done = place.lab(arguments).output().unwrap();
        assert_eq!(done.status.code(), Some(2), "{arguments:?}");
        assert!(text(&done.stderr).contains(why), "{arguments:?}: {}", text(&done.stderr));
    }
    Ok(())
}

/// A QEMU in the working directory goes first.
fn failing_qemu() -> Tested {
    let place = Place::new();
    let at = |path: &str| place.folder.path().join(path);
    fs::create_dir_all(at("ci/.qemu/bin")).unwrap();
    let qemu = at("ci/.qemu/bin/qemu-system-x86_64");
    fs::write(&qemu, "#!/bin/sh\necho 'qemu: no such machine' >&2\nexit 9\n").unwrap();
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(at("kernels/6.0.0/modules/kernel")).unwrap();
    fs::write(at("kernels/6.0.0/vmlinuz"), "").unwrap();
    let done = place.lab(&["doctor"]).env("CPR_KERNELS", at("kernels")).output().unwrap();
    let err = text(&done.stderr);
    assert_eq!(done.status.code(), Some(3), "{err}");
    assert!(err.contains("the lab ended without a result (exit status: 9)"), "{err}");
    assert!(err.contains("\n  qemu: no such machine"), "{err}");
    Ok(())
}
