//! A temporary directory in which a VMM is started, and the VMM.

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

/// A place for one VM: images, sockets and files, gone at the end.
pub struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    /// A new place with guests in it.
    pub fn new() -> Self {
        let scene = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        let heartbeat = guest_images::guest("heartbeat").expect("it is embedded");
        scene.write(heartbeat.name, heartbeat.elf);
        scene.write("alphabet", images::alphabet());
        scene.write("echo", images::echo());
        scene.write("without-note", images::without_note());
        scene
    }

    /// The path of a file here, which need not exist.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a file here.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        path
    }

    /// This place.
    pub fn dir(&self) -> &str {
        self.dir.path().to_str().expect("temporary directories have plain names")
    }

    /// Makes an executable file here.
    pub fn script(&self, name: &str, content: &str) -> String {
        let path = self.write(name, content);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
        path.to_str().expect("it is in `dir`").to_owned()
    }

    /// What is here.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).expect("the directory is there");
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    }

    /// `words` with `DIR` replaced by this place's path.
    pub fn words(&self, words: &str) -> Vec<String> {
        let dir = self.dir.path().display().to_string();
        words.split_whitespace().map(|word| word.replace("DIR", &dir)).collect()
    }

    /// `text` with this place's path replaced by `DIR`.
    pub fn redact(&self, text: &str) -> String {
        text.replace(&self.dir.path().display().to_string(), "DIR").replace(BINARY, "CPR-VMM")
    }

    /// The VMM with `arguments` (see [`words`](Self::words)), to be started.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(BINARY);
        command.args(self.words(arguments)).current_dir(self.dir.path()).stdin(Stdio::null());
        // What the test was started with is not what the VMM is looked at for.
        // SAFETY: a system call on numbers.
        unsafe { command.pre_exec(inherit_nothing) };
        command
    }

    /// Updates to a program that cannot take over, and takes the old one the room for its descriptors.
    pub fn update_without_descriptors(&self, vm: &Vm<'_>, qmp: &mut Qmp) {
        let words = vm.command_again("file:DIR/missing");
        let script = format!(
            "#!/bin/sh\n[ \"$CPR_REHEARSAL\" ] || ulimit -n 20\nexec {}\n",
            words.join(" ")
        );
        let path = self.script("wrapper", &script);
        qmp.rehearsal = false;
        qmp.begin_update(&[path], &vm.state_file()).expect("nothing is in its way");
    }

    /// Starts a VMM with a socket for QMP and `arguments`.
    pub fn start(&self, arguments: &str) -> Vm<'_> {
        self.start_with(arguments, |_| {})
    }

    /// The same, with a change to the process that is to be.
    pub fn start_with(&self, arguments: &str, change: impl FnOnce(&mut Command)) -> Vm<'_> {
        let arguments = format!("--qmp unix:DIR/qmp {arguments}");
        let mut command = self.command(&arguments);
        command.stdout(Stdio::null());
        change(&mut command);
        let stderr = fs::File::create(self.path("stderr")).expect("a file for stderr");
        let child = command.stderr(stderr).spawn().expect("the VMM starts");
        Vm { scene: self, child, arguments }
    }
}

/// How long all processes of a scene may take to end.
const ENDS: Duration = Duration::from_secs(10);

/// A VMM; dropping it kills it.
pub struct Vm<'a> {
    scene: &'a Scene,
    child: Child,
    arguments: String,
}

impl Vm<'_> {
    /// Its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its ends of stdin and stdout, where the test asked for pipes.
    pub fn stdio(&mut self) -> (ChildStdin, ChildStdout) {
        let (stdin, stdout) = (self.child.stdin.take(), self.child.stdout.take());
        stdin.zip(stdout).expect("both are pipes")
    }

    /// A new QMP client. When it is there, the VMM's start is over.
    pub fn qmp(&mut self) -> Qmp {
        let path = self.scene.path("qmp");
        let stream = until("the QMP socket", || {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the VMM ended, {status}: {}", self.stderr());
            }
            UnixStream::connect(&path)
        });
        Qmp::new(stream)
    }

    /// The file that updates save their state in.
    pub fn state_file(&self) -> PathBuf {
        self.scene.path("state")
    }

    /// The same binary with the same arguments, for a take-over, and some more.
    pub fn command_again(&self, incoming: &str) -> Vec<String> {
        let words = format!("{BINARY} {} --incoming {incoming}", self.arguments);
        self.scene.words(&words)
    }

    /// Updates the VMM to itself.
    pub fn update(&self, qmp: &mut Qmp) {
        let status = qmp.update(&self.command_again("file:DIR/state"), &self.state_file());
        // The answer comes when nothing of the update is left.
        let told = qmp.migration();
        assert_eq!(status, MigrationStatus::Completed, "{:?}", told.error_desc);
    }

    /// Waits for its end.
    pub fn end(&mut self) -> ExitStatus {
        until("the end of the VMM", || {
            self.child.try_wait().expect("it is our child").ok_or("it runs")
        })
    }

    /// True once it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// What it has written to stderr.
    pub fn stderr(&self) -> String {
        self.scene.redact(&read(&self.scene.path("stderr")))
    }
}

/// Whoever a VM has been continued by, or a test that failed has left: one that somebody stands by is
/// continued when it is killed, so they are killed until none is left.
impl Drop for Scene {
    fn drop(&mut self) {
        let deadline = Instant::now() + ENDS;
        loop {
            let left = process::naming(self.dir.path());
            if left.is_empty() || Instant::now() > deadline {
                return;
            }
            for pid in left {
                // It may have ended meanwhile.
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
    // SAFETY: closes nothing before exec does.
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
