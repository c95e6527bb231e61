//! A temporary directory for one VM, and the VMM that runs in it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cpr_qmp::migration::MigrationStatus;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Qmp, images, process, until};

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_cpr-vmm");

/// A temporary directory for one VM, with its images, sockets and files.
pub struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    /// Creates a directory with guest images.
    pub fn new() -> Self {
        Self::within(tempfile::tempdir().expect("a temporary directory"))
    }

    /// Creates the directory on a tmpfs, where writes through a mapping do not date a file.
    pub fn in_memory() -> Self {
        Self::within(tempfile::tempdir_in("/dev/shm").expect("a temporary directory in memory"))
    }

    fn within(dir: tempfile::TempDir) -> Self {
        let scene = Self { dir };
        let heartbeat = guest_images::guest("heartbeat").expect("the guest is embedded");
        scene.write(heartbeat.name, heartbeat.elf);
        scene.write("alphabet", images::alphabet());
        scene.write("echo", images::echo());
        scene.write("powers-off", images::powers_off());
        scene.write("bzimage", images::bzimage());
        scene.write("without-note", images::without_note());
        scene
    }

    /// Returns the path of a file in the directory, which need not exist.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file in the directory.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        path
    }

    /// Returns the path of the directory.
    pub fn dir(&self) -> &str {
        self.dir.path().to_str().expect("temporary directories have plain names")
    }

    /// Writes an executable file in the directory.
    pub fn script(&self, name: &str, content: &str) -> String {
        let path = self.write(name, content);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file is ours");
        path.to_str().expect("the path is in `dir`").to_owned()
    }

    /// Returns the names of the files in the directory, sorted.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("the directory exists");
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    }

    /// Splits `words`, and replaces `DIR` by the directory's path.
    pub fn words(&self, words: &str) -> Vec<String> {
        let dir = self.dir.path().display().to_string();
        words.split_whitespace().map(|word| word.replace("DIR", &dir)).collect()
    }

    /// Returns `text` with the directory's path replaced by `DIR`, and the VMM's by `CPR-VMM`.
    pub fn redact(&self, text: &str) -> String {
        text.replace(&self.dir.path().display().to_string(), "DIR").replace(BINARY, "CPR-VMM")
    }

    /// Returns the command that starts the VMM with `arguments` (see [`words`](Self::words)).
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(BINARY);
        command.args(self.words(arguments)).current_dir(self.dir.path()).stdin(Stdio::null());
        // The VMM must not inherit the test's descriptors.
        // SAFETY: a system call on numbers.
        unsafe { command.pre_exec(inherit_nothing) };
        command
    }

    /// Updates to a program that cannot take over, and leaves the old one too few descriptors.
    pub fn update_without_descriptors(&self, vm: &Vm<'_>, qmp: &mut Qmp) {
        let words = vm.command_again("file:DIR/missing");
        let script = format!(
            "#!/bin/sh\n[ \"$CPR_REHEARSAL\" ] || ulimit -n 20\nexec {}\n",
            words.join(" ")
        );
        let path = self.script("wrapper", &script);
        qmp.rehearsal = false;
        qmp.begin_update(&[path], &vm.state_file()).expect("the update is accepted");
    }

    /// Starts a VMM with a QMP socket and `arguments`.
    pub fn start(&self, arguments: &str) -> Vm<'_> {
        self.start_with(arguments, |_| {})
    }

    /// Like [`start`](Self::start), but applies `change` to the command first.
    pub fn start_with(&self, arguments: &str, change: impl FnOnce(&mut Command)) -> Vm<'_> {
        self.start_beside("", arguments, change)
    }

    /// Like [`start_with`](Self::start_with), for one more VMM: `name` begins the names of its QMP
    /// socket and of the file of its stderr.
    pub fn start_beside(
        &self,
        name: &str,
        arguments: &str,
        change: impl FnOnce(&mut Command),
    ) -> Vm<'_> {
        let arguments = format!("--qmp unix:DIR/{name}qmp {arguments}");
        let mut command = self.command(&arguments);
        command.stdout(Stdio::null());
        change(&mut command);
        let stderr = self.path(&format!("{name}stderr"));
        let stderr = fs::File::create(stderr).expect("a file for stderr");
        let child = command.stderr(stderr).spawn().expect("the VMM starts");
        Vm { scene: self, child, arguments, name: name.to_owned() }
    }
}

/// How long to wait for all processes of a scene to end.
const ENDS: Duration = Duration::from_secs(10);

/// A running VMM, killed on drop.
pub struct Vm<'a> {
    scene: &'a Scene,
    child: Child,
    arguments: String,
    /// Begins the names of its files.
    name: String,
}

impl Vm<'_> {
    /// Returns its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Takes the test's ends of the pipes to its stdin and stdout.
    pub fn stdio(&mut self) -> (ChildStdin, ChildStdout) {
        let (stdin, stdout) = (self.child.stdin.take(), self.child.stdout.take());
        stdin.zip(stdout).expect("both are pipes")
    }

    /// Connects a new QMP client, which succeeds once the VMM has started.
    pub fn qmp(&mut self) -> Qmp {
        let path = self.scene.path(&format!("{}qmp", self.name));
        let stream = until("the QMP socket", || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the VMM ended, {status}: {}", self.stderr());
            }
            UnixStream::connect(&path)
        });
        Qmp::new(stream)
    }

    /// Returns the file in which updates save the state.
    pub fn state_file(&self) -> PathBuf {
        self.scene.path("state")
    }

    /// Returns the command to update to: the same binary and arguments, with `--incoming`.
    pub fn command_again(&self, incoming: &str) -> Vec<String> {
        let words = format!("{BINARY} {} --incoming {incoming}", self.arguments);
        self.scene.words(&words)
    }

    /// Updates the VMM to itself.
    pub fn update(&self, qmp: &mut Qmp) {
        let status = qmp.update(&self.command_again("file:DIR/state"), &self.state_file());
        // Once this is answered, nothing of the update is left.
        let told = qmp.migration();
        assert_eq!(status, MigrationStatus::Completed, "{:?}", told.error_desc);
    }

    /// Waits until it has ended.
    pub fn end(&mut self) -> ExitStatus {
        until("the end of the VMM", || {
            self.child.try_wait().expect("it is our child").ok_or("still running")
        })
    }

    /// Returns whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Returns what it has written to stderr.
    pub fn stderr(&self) -> String {
        self.scene.redact(&read(&self.scene.path(&format!("{}stderr", self.name))))
    }
}

/// Kills the processes that continue a VM or that a failed test has left behind. A VMM with a
/// keeper is continued when it is killed, so repeats until none is left.
impl Drop for Scene {
    fn drop(&mut self) {
        let deadline = Instant::now() + ENDS;
        loop {
            let left = process::naming(self.dir.path());
            if left.is_empty() || Instant::now() > deadline {
                return;
            }
            for pid in left {
                // It may have ended already.
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn inherit_nothing() -> std::io::Result<()> {
    // SAFETY: no descriptor is closed before exec.
    let result =
        unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    Ok(Errno::result(result).map(drop)?)
}

fn read(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => String::new(),
        Err(error) => panic!("{path:?}: {error}"),
    }
}
