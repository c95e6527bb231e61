//! Ends a case that does not end by itself, and looks around before it kills.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::EnvironmentError;
use super::timeline::Timeline;
use super::vm::kill_group;

/// A watchdog; dropped, it goes away.
pub struct Watchdog {
    called_off: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    barked: Arc<Mutex<bool>>,
    /// The process that is looked at; its group stays the same.
    pid: Arc<AtomicI32>,
}

impl Watchdog {
    /// Watches process `pid`, and the group of that number; after `limit` it collects evidence in
    /// `folder` and kills.
    pub fn start(
        pid: i32,
        limit: Duration,
        folder: PathBuf,
        timeline: Arc<Timeline>,
    ) -> Result<Self, EnvironmentError> {
        let (called_off, calls) = channel();
        let barked = Arc::new(Mutex::new(false));
        let group = pid;
        let pid = Arc::new(AtomicI32::new(pid));
        let (bark, watched) = (barked.clone(), pid.clone());
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
            timeline.say("harness", format!("watchdog: {limit:?} are over; looking at {pid}"));
            collect(pid, &folder.join("watchdog"));
            timeline.say("harness", format!("watchdog: killing {pid}"));
            kill_group(group);
        };
        let thread = std::thread::Builder::new()
            .name("watchdog".into())
            .spawn(watch)
            .map_err(EnvironmentError::Thread)?;
        Ok(Self { called_off: Some(called_off), thread: Some(thread), barked, pid })
    }

    /// Lets it begin to wait anew.
    pub fn rewind(&self) {
        if let Some(calls) = &self.called_off {
            // One that has barked does not listen.
            let _ = calls.send(());
        }
    }

    /// The VM continues in process `pid` of the same group.
    pub fn follow(&self, pid: i32) {
        self.pid.store(pid, Ordering::SeqCst);
    }

    /// True once it has killed.
    pub fn has_barked(&self) -> bool {
        *self.barked.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Copies what `/proc` knows of a process and its threads. Best effort: it may be gone.
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
