//! Ends a case that exceeds its deadline, and collects evidence before it kills the VMM.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::process::child::kill_group;
use crate::process::environment::EnvironmentError;
use crate::run::evidence::timeline::Timeline;

/// A watchdog, disarmed when dropped.
pub struct Watchdog {
    called_off: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    expired: Arc<Mutex<bool>>,
    /// The process whose evidence is collected.
    pid: Arc<AtomicI32>,
    /// The process groups to kill.
    groups: Arc<Mutex<BTreeSet<i32>>>,
}

impl Watchdog {
    /// Starts to watch process `pid`, which leads its process group. After `limit`, collects
    /// evidence of the process in `folder` and kills the group.
    pub fn start(
        pid: i32,
        limit: Duration,
        folder: PathBuf,
        timeline: Arc<Timeline>,
    ) -> Result<Self, EnvironmentError> {
        let (called_off, calls) = channel();
        let expired = Arc::new(Mutex::new(false));
        let groups = Arc::new(Mutex::new(BTreeSet::from([pid])));
        let to_kill = groups.clone();
        let pid = Arc::new(AtomicI32::new(pid));
        let (bark, watched) = (expired.clone(), pid.clone());
        let watch = move || {
            loop {
                match calls.recv_timeout(limit) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => break,
                }
            }
            *bark.lock().unwrap_or_else(PoisonError::into_inner) = true;
            let pid = watched.load(Ordering::SeqCst);
            timeline.say("harness", format!("watchdog: {limit:?} expired; inspecting {pid}"));
            collect(pid, &folder.join("watchdog"));
            timeline.say("harness", format!("watchdog: killing {pid}"));
            let groups = to_kill.lock().unwrap_or_else(PoisonError::into_inner);
            groups.iter().for_each(|group| kill_group(*group));
        };
        let thread = std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(watch)
            .map_err(EnvironmentError::Thread)?;
        Ok(Self { called_off: Some(called_off), thread: Some(thread), expired, pid, groups })
    }

    /// Restarts the time limit.
    pub fn rewind(&self) {
        if let Some(calls) = &self.called_off {
            // Fails if the watchdog has expired already.
            let _ = calls.send(());
        }
    }

    /// Kills process group `group` too.
    pub fn also_end(&self, group: i32) {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).insert(group);
    }

    /// Leaves process group `group` alone.
    pub fn no_longer_end(&self, group: i32) {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }

    /// Switches to process `pid`, in which the VM continues.
    pub fn follow(&self, pid: i32) {
        self.pid.store(pid, Ordering::SeqCst);
    }

    /// Returns true once the limit has expired, just before the VMM is killed.
    pub fn has_expired(&self) -> bool {
        *self.expired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.called_off.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Copies what `/proc` shows of a process and its threads. Best effort: it may have exited.
pub fn collect(pid: i32, folder: &Path) {
    let process = PathBuf::from(format!("/proc/{pid}"));
    copy(&process, folder, &["status", "stat", "maps", "limits"]);
    let fds = crate::observe::fds::FdTable::read(pid).map(|t| t.to_string()).unwrap_or_default();
    let _ = fs::write(folder.join("fds"), fds);
    for task in fs::read_dir(process.join("task")).into_iter().flatten().flatten() {
        let copied = folder.join("task").join(task.file_name());
        copy(&task.path(), &copied, &["comm", "status", "stack", "syscall", "wchan"]);
    }
}

fn copy(from: &Path, to: &Path, files: &[&str]) {
    let _ = fs::create_dir_all(to);
    for file in files {
        if let Ok(content) = fs::read(from.join(file)) {
            let _ = fs::write(to.join(file), content);
        }
    }
}
