//! The file systems in a lab.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};
use nix::unistd::syncfs;

use super::InitError;
use crate::lab::settings::Share;
use crate::lab::{BUSYBOX, restart};
use crate::observe::poll::{self, Deadline};

/// How long the kernel may take to find the memory that outlives a restart.
const FOUND: Duration = Duration::from_secs(20);

/// Source, mount point, type and options of each, in this order.
const SYSTEM: [(&str, &str, &str, &str); 10] = [
    ("proc", "/proc", "proc", ""),
    ("sysfs", "/sys", "sysfs", ""),
    ("devtmpfs", "/dev", "devtmpfs", "mode=0755"),
    ("devpts", "/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666"),
    ("shm", "/dev/shm", "tmpfs", "mode=1777"),
    ("tmp", "/tmp", "tmpfs", "mode=1777"),
    ("run", "/run", "tmpfs", "mode=0755"),
    ("cgroup", CGROUPS, "cgroup2", ""),
    ("debugfs", "/sys/kernel/debug", "debugfs", ""),
    ("tracefs", "/sys/kernel/tracing", "tracefs", ""),
];

const CGROUPS: &str = "/sys/fs/cgroup";

/// Mounts what every process expects, and lets cgroups use all controllers.
pub(super) fn system() -> Result<(), InitError> {
    for (source, target, kind, options) in SYSTEM {
        mount_on(source, Path::new(target), kind, MsFlags::empty(), options)?;
    }
    let controllers = Path::new(CGROUPS).join("cgroup.controllers");
    let controllers = fs::read_to_string(controllers)
        .map_err(InitError::step("read the controllers of cgroups"))?;
    for name in controllers.split_ascii_whitespace() {
        let file = Path::new(CGROUPS).join("cgroup.subtree_control");
        fs::write(file, format!("+{name}"))
            .map_err(InitError::step(format!("delegate the cgroup controller {name}")))?;
    }
    // If the lab is killed, at most the last second of what it wrote to its shares is lost.
    for (name, centiseconds) in
        [("dirty_expire_centisecs", "50"), ("dirty_writeback_centisecs", "50")]
    {
        fs::write(Path::new("/proc/sys/vm").join(name), centiseconds)
            .map_err(InitError::step(format!("set vm.{name}")))?;
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        std::os::unix::fs::symlink(target, link)
            .map_err(InitError::step(format!("create {link}")))?;
    }
    Ok(())
}

/// A folder of the host outside.
pub(super) struct Shared {
    path: PathBuf,
    /// Opened before anything was written, so that it reports each failure to write.
    folder: File,
}

impl Shared {
    /// Writes what the lab has written to the host outside.
    pub(super) fn sync(&self) -> Result<(), InitError> {
        let what = format!("write to {} outside of the lab", self.path.display());
        syncfs(&self.folder).map_err(InitError::step(what))
    }
}

/// Mounts a folder of the host outside.
pub(super) fn share(share: &Share) -> Result<Shared, InitError> {
    let flags = if share.read_only { MsFlags::MS_RDONLY } else { MsFlags::empty() };
    // Nothing outside changes what the lab writes, so it may be cached.
    let options = "trans=virtio,version=9p2000.L,msize=512000,cache=loose";
    mount_on(&share.tag, &share.path, "9p", flags, options)?;
    let what = format!("open {}", share.path.display());
    let folder = File::open(&share.path).map_err(InitError::step(what))?;
    Ok(Shared { path: share.path.clone(), folder })
}

/// Mounts the file system in the memory that outlives a restart; makes it, if the lab has just been `powered_on`.
pub(super) fn keep_memory(powered_on: bool) -> Result<(), InitError> {
    let device = Path::new(restart::DEVICE);
    let found = poll::until(Deadline::after(FOUND), || device.exists().then_some(()));
    found.ok_or_else(|| {
        let why =
            format!("no {} after {FOUND:?}: its kernel lacks nd_e820 or nd_pmem", restart::DEVICE);
        InitError::new("keep memory across a restart of the lab", why)
    })?;
    if powered_on {
        let what = format!("make a file system in {} with busybox", restart::DEVICE);
        // Blocks as large as pages, which DAX demands, and inodes with times in nanoseconds.
        let made = Command::new(BUSYBOX)
            .args(["mke2fs", "-b", "4096", "-I", "256", "-m", "0", restart::DEVICE])
            .output()
            .map_err(|e| InitError::new(&what, e))?;
        if !made.status.success() {
            return Err(InitError::new(&what, String::from_utf8_lossy(&made.stderr).trim()));
        }
    }
    mount_on(restart::DEVICE, Path::new(restart::KEPT), "ext4", MsFlags::empty(), "dax=always")
}

/// Unmounts that file system, if it is there, so that all of it is in the memory.
pub(super) fn leave_kept() -> Result<(), InitError> {
    match umount(restart::KEPT) {
        // It is not mounted.
        Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        done => done.map_err(InitError::step(format!("unmount {}", restart::KEPT))),
    }
}

fn mount_on(
    source: &str,
    target: &Path,
    kind: &str,
    flags: MsFlags,
    options: &str,
) -> Result<(), InitError> {
    let what = || format!("mount {source} ({kind}) on {}", target.display());
    fs::create_dir_all(target).map_err(|e| InitError::new(what(), e))?;
    match mount(Some(source), target, Some(kind), flags, Some(options)) {
        // Not every kernel has them.
        Err(Errno::ENODEV) if matches!(kind, "debugfs" | "tracefs") => Ok(()),
        done => done.map_err(|e| InitError::new(what(), e)),
    }
}
