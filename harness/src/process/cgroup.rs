//! A memory cgroup for one VMM, created below the harness's own or beside it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::{MountInfo, Process};

use crate::observe::patience::patient;
use crate::observe::poll::{self, Deadline};
use crate::process::environment::EnvironmentError;
use crate::process::signals::{self, FolderGuard};
use crate::scenario::Amount;

/// How long the last processes of a cgroup may take to leave it.
const EMPTY: Duration = Duration::from_secs(20);

/// The usage and limit files of cgroup versions 1 and 2.
const FILES: [(&str, &str); 2] =
    [("memory.usage_in_bytes", "memory.limit_in_bytes"), ("memory.current", "memory.max")];

/// A memory cgroup, removed when dropped; by then no process may be left in it.
pub struct Cgroup {
    folder: PathBuf,
    usage: &'static str,
    limit: &'static str,
    keep: bool,
    _guard: FolderGuard,
}

impl Cgroup {
    /// Creates an empty cgroup.
    pub fn create() -> Result<Self, EnvironmentError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("cpr-harness-{}-{number}", std::process::id());
        let mut error = EnvironmentError::file("find a memory cgroup in", "/proc/self/cgroup")(
            io::ErrorKind::NotFound.into(),
        );
        for parent in parents() {
            let folder = parent.join(&name);
            if let Err(e) = fs::create_dir(&folder) {
                error = EnvironmentError::file("create", folder)(e);
                continue;
            }
            // A version 2 cgroup has the files only if its parent enables the memory controller.
            match FILES.iter().find(|(_, limit)| folder.join(limit).exists()) {
                Some((usage, limit)) => {
                    let _guard = signals::guard_folder(&folder);
                    return Ok(Self { folder, usage, limit, keep: false, _guard });
                }
                None => {
                    let _ = fs::remove_dir(&folder);
                }
            }
        }
        Err(error)
    }

    /// Opens `cgroup.procs`, for a process to move itself into the cgroup.
    pub fn processes(&self) -> Result<File, EnvironmentError> {
        let path = self.folder.join("cgroup.procs");
        File::options().write(true).open(&path).map_err(EnvironmentError::file("open", path))
    }

    /// Sets the limit and returns it in bytes.
    pub fn limit(&self, amount: Amount) -> Result<u64, EnvironmentError> {
        let usage = self.folder.join(self.usage);
        let used = fs::read_to_string(&usage).map_err(EnvironmentError::file("read", &usage))?;
        let bytes = amount.of(used.trim().parse().unwrap_or(0));
        let limit = self.folder.join(self.limit);
        fs::write(&limit, bytes.to_string()).map_err(EnvironmentError::file("write", &limit))?;
        Ok(bytes)
    }

    /// Kills every process in the cgroup until none is left.
    pub fn kill(&self) -> Result<(), EnvironmentError> {
        // Version 2 only: kills all processes at once.
        if fs::write(self.folder.join("cgroup.kill"), "1").is_ok() {
            return Ok(());
        }
        let path = self.folder.join("cgroup.procs");
        let mut read = Ok(String::new());
        poll::until(Deadline::after(patient(EMPTY)), || {
            read = fs::read_to_string(&path);
            let pids = read.as_ref().map(String::as_str).unwrap_or_default();
            for pid in pids.lines().filter_map(|line| line.parse().ok()) {
                // The process may have exited already.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            pids.is_empty().then_some(())
        });
        read.map(drop).map_err(EnvironmentError::file("read", path))
    }

    /// Keeps the cgroup when this is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if !self.keep {
            poll::until(Deadline::after(patient(EMPTY)), || fs::remove_dir(&self.folder).ok());
        }
    }
}

/// Returns why a VMM cannot have its own memory cgroup here, if so.
pub fn unmet() -> Option<String> {
    Cgroup::create().err().map(|e| format!("no memory cgroup for the VMM here: {e}"))
}

/// Returns where a cgroup could be created: in the harness's own cgroup, or beside it.
fn parents() -> Vec<PathBuf> {
    let own = Process::myself();
    let read = own.and_then(|own| Ok((own.cgroups()?, own.mountinfo()?)));
    let Ok((cgroups, mounts)) = read else { return Vec::new() };
    let mut parents = Vec::new();
    for cgroup in cgroups {
        let memory = cgroup.controllers.iter().any(|controller| controller == "memory");
        let kind = match (memory, cgroup.controllers.is_empty()) {
            (true, _) => "cgroup",
            (false, true) => "cgroup2",
            _ => continue,
        };
        let Some(mount) = mounts.iter().find(|mount| has_memory(mount, kind)) else { continue };
        let root = &mount.mount_point;
        let own = root.join(cgroup.pathname.trim_start_matches('/'));
        let above = own.parent().filter(|above| above.starts_with(root)).map(Path::to_owned);
        parents.extend(std::iter::once(own).chain(above));
    }
    parents
}

/// Whether this is a mount of the memory controller's file system of type `kind`.
fn has_memory(mount: &MountInfo, kind: &str) -> bool {
    mount.fs_type == kind && (kind == "cgroup2" || mount.super_options.contains_key("memory"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("cgroup", "memory", "rw,memory", true)]
    #[case("cgroup", "cpu", "rw,cpu,cpuacct", false)]
    #[case("cgroup2", "unified", "rw,nsdelegate", true)]
    fn finds_mounts(
        #[case] kind: &str,
        #[case] name: &str,
        #[case] options: &str,
        #[case] found: bool,
    ) {
        let line =
            format!("35 24 0:30 / /sys/fs/cgroup/{name} rw shared:9 - {kind} cgroup {options}");
        let mount = MountInfo::from_line(&line).unwrap();
        assert_eq!(mount.mount_point, Path::new("/sys/fs/cgroup").join(name));
        assert_eq!(has_memory(&mount, kind), found);
        assert!(!has_memory(&mount, "tmpfs"));
    }
}
