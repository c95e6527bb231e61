//! The QEMU process of a lab, its files, and the outer ends of its ports.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tempfile::TempDir;

use super::error::{LabError, Log};
use super::initramfs::{self, Busybox, Contents};
use super::messages::PORTS;
use super::modules::{self, Module};
use super::qemu::{self, Files};
use super::settings::{Settings, Share};
use super::{KERNELS, Lab, settings};
use crate::process::child::{die_with, kill_group};
use crate::process::program;
use crate::process::signals::{self, FolderGuard};

/// How many lines of the logs an error shows.
const LINES: usize = 8;

/// A running QEMU. It is killed, and its folder removed, when this is dropped.
pub struct Machine {
    group: i32,
    folder: Option<(TempDir, FolderGuard)>,
    console: PathBuf,
    errors: PathBuf,
}

/// The outer ends of the ports.
pub struct Ports {
    /// Messages.
    pub control: UnixStream,
    /// The command's standard input.
    pub stdin: UnixStream,
    /// The command's standard output.
    pub stdout: UnixStream,
    /// The command's standard error.
    pub stderr: UnixStream,
}

impl Machine {
    /// Starts QEMU, which boots a lab that runs `command`.
    pub fn start(lab: &Lab, command: settings::Command) -> Result<(Self, Child, Ports), LabError> {
        let (folder, guard) =
            signals::guarded_folder().map_err(LabError::prepare("create a temporary folder"))?;
        let at = |name: &str| folder.path().join(name);
        let (initramfs, console, errors) = (at("initramfs"), at("console.log"), at("qemu.log"));
        let keeps_memory = lab.kept_memory.0 > 0;
        let wanted = modules::wanted(!lab.devices.is_empty(), keeps_memory);
        let modules = modules::in_order(&lab.kernel.modules, &wanted)?;
        let settings = Settings {
            modules: modules.iter().map(|module| initramfs::module_path(module).into()).collect(),
            shares: shares(lab),
            devices: qemu::addresses(&lab.devices),
            huge_pages: lab.huge_pages,
            keeps_memory,
            restarts: 0,
            written_before: [0; 2],
            command,
        };
        write_initramfs(&initramfs, lab, &modules, &settings)?;
        let (ports, inner) = ports().map_err(LabError::prepare("create sockets for the lab"))?;
        let files = Files {
            initramfs: &initramfs,
            console: &console,
            ports: inner.each_ref().map(AsRawFd::as_raw_fd),
            shares: &settings.shares,
        };
        let log = File::create(&errors).map_err(LabError::prepare("create a log"))?;
        let arguments = qemu::arguments(lab, &files);
        let child = spawn(&lab.qemu, &arguments, log, &inner)
            .map_err(|source| LabError::Spawn { qemu: lab.qemu.clone(), source })?;
        let group = child.id() as i32;
        Ok((Self { group, folder: Some((folder, guard)), console, errors }, child, ports))
    }

    /// The last lines of what QEMU and the kernel wrote; keeps their files.
    pub fn log(&mut self) -> Log {
        if let Some((folder, _)) = self.folder.take() {
            let folder = folder.keep();
            // Large, and made again by the next lab.
            let _ = fs::remove_file(folder.join("initramfs"));
        }
        let mut lines = last_lines(&self.errors);
        lines.extend(last_lines(&self.console));
        Log { lines, file: self.console.clone() }
    }

    /// Removes the initramfs, which only the boot needs: a lab that is killed leaves little behind.
    pub fn booted(&self) {
        if let Some((folder, _)) = &self.folder {
            let _ = fs::remove_file(folder.path().join("initramfs"));
        }
    }

    /// Keeps the folder; returns it.
    pub fn keep(&mut self) -> Option<PathBuf> {
        self.folder.take().map(|(folder, _)| folder.keep())
    }

    /// Kills QEMU.
    pub fn kill(&self) {
        kill_group(self.group);
        signals::forget(self.group);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The folders that the lab shares with this host.
fn shares(lab: &Lab) -> Vec<Share> {
    let kernels = lab.kernels.iter().map(|folder| Share {
        tag: "kernels".into(),
        path: KERNELS.into(),
        source: folder.clone(),
        read_only: true,
    });
    let writable = lab.shares.iter().enumerate().map(|(index, folder)| Share {
        tag: format!("share{index}"),
        path: folder.clone(),
        source: folder.clone(),
        read_only: false,
    });
    kernels.chain(writable).collect()
}

fn write_initramfs(
    path: &Path,
    lab: &Lab,
    modules: &[Module],
    settings: &Settings,
) -> Result<(), LabError> {
    // The file may have been replaced by a newer build.
    let own = fs::read("/proc/self/exe");
    let own = own.map_err(LabError::prepare("read this binary"))?;
    let busybox = lab.busybox.as_deref().map(Busybox::read).transpose();
    let busybox = busybox.map_err(LabError::prepare("read busybox"))?;
    let contents = Contents { program: &own, modules, busybox: busybox.as_ref(), settings };
    let written = File::create(path).and_then(|file| {
        let mut file = BufWriter::new(file);
        initramfs::write(&contents, &mut file)?;
        file.flush()
    });
    written.map_err(LabError::prepare(format!("write the initramfs {}", path.display())))
}

fn ports() -> io::Result<(Ports, [UnixStream; PORTS.len()])> {
    let [control, stdin, stdout, stderr] = [pair()?, pair()?, pair()?, pair()?];
    let inner = [control.1, stdin.1, stdout.1, stderr.1];
    Ok((Ports { control: control.0, stdin: stdin.0, stdout: stdout.0, stderr: stderr.0 }, inner))
}

fn pair() -> io::Result<(UnixStream, UnixStream)> {
    UnixStream::pair()
}

fn spawn(qemu: &Path, arguments: &[String], log: File, ports: &[UnixStream]) -> io::Result<Child> {
    let parent = nix::unistd::getpid();
    let inherited: Vec<BorrowedFd<'_>> = ports.iter().map(AsFd::as_fd).collect();
    let inherited: Vec<_> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let mut command = Command::new(qemu);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C reaches only the harness.
        .process_group(0);
    let begin = move || {
        signals::reset()?;
        program::inherit_nothing()?;
        for socket in &inherited {
            // SAFETY: the sockets are open in the parent until `spawn` returns, and so in this copy of it.
            let socket = unsafe { BorrowedFd::borrow_raw(*socket) };
            fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        die_with(parent)
    };
    // SAFETY: all of these are async-signal-safe and the closure does nothing else.
    unsafe { command.pre_exec(begin) };
    program::spawn(&mut command)
}

fn last_lines(path: &Path) -> Vec<String> {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
    // Registers and a trace follow a panic: its first lines say more.
    let panic = lines.iter().position(|line| line.contains("Kernel panic"));
    let first = panic.unwrap_or(lines.len().saturating_sub(LINES));
    lines[first..].iter().take(LINES).map(|line| (*line).to_owned()).collect()
}
