//! Finds the processes that a rehearsal has started. Others must be left alone: the VMM may have
//! children of its own (`sidecar & exec vmm`), and while a rehearsal is under way, their orphans
//! become children of the VMM too.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::Pid;

use super::super::variables::REHEARSAL_MARK;

/// How long a process may show no environment because it executes programs.
const EXECUTING: Duration = Duration::from_secs(1);

/// More than an environment usually has.
const LARGE: usize = 256 << 10;

/// Rehearsals of this process so far.
static REHEARSALS: AtomicU32 = AtomicU32::new(0);

/// Identifies the processes of one rehearsal: they are in the session of its first process, or have
/// its mark in the environment that they were started with. A process that has left both is not
/// recognized.
#[derive(Clone, Debug)]
pub struct ProcessTree {
    session: i32,
    mark: String,
    /// Children of this process from before the rehearsal.
    before: BTreeSet<Pid>,
}

/// Returns a mark that no other rehearsal has.
pub fn new_mark() -> String {
    let number = REHEARSALS.fetch_add(1, Ordering::Relaxed) + 1;
    format!("{}.{number}", std::process::id())
}

impl ProcessTree {
    /// Creates the family of `first`, which leads a session of its own; `before` are the children of this process
    /// from before it was started.
    pub fn new(first: Pid, mark: String, before: BTreeSet<Pid>) -> Self {
        Self { session: first.as_raw(), mark, before }
    }

    /// Returns the children of this process that belong to the family, except `first`.
    pub fn orphans(&self, first: Pid) -> BTreeSet<Pid> {
        self.new_children().into_iter().filter(|pid| *pid != first && self.has(*pid)).collect()
    }

    /// Returns the children of this process that were not there before, whether they belong to the family or not.
    pub fn new_children(&self) -> BTreeSet<Pid> {
        children().difference(&self.before).copied().collect()
    }

    fn has(&self, pid: Pid) -> bool {
        session(pid) == Some(self.session) || self.has_marked(pid)
    }

    fn has_marked(&self, pid: Pid) -> bool {
        let entry = format!("{REHEARSAL_MARK}={}", self.mark);
        let until = Instant::now() + EXECUTING;
        loop {
            // Only its own user may read the environment of another user's program.
            let environment = environment(pid).unwrap_or_default();
            if !environment.is_empty() {
                return environment.split(|byte| *byte == 0).any(|found| found == entry.as_bytes());
            }
            // In the middle of `execve` it has neither the old nor the new one.
            if has_ended(pid) || Instant::now() >= until {
                return false;
            }
            // It needs a CPU to get on.
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Reads `/proc/PID/environ` with one call if it can: a process that executes a program between two calls ends the
/// file after the first.
fn environment(pid: Pid) -> io::Result<Vec<u8>> {
    let mut file = File::open(format!("/proc/{pid}/environ"))?;
    let mut environment = vec![0; LARGE];
    let read = file.read(&mut environment)?;
    environment.truncate(read);
    if read == LARGE {
        file.read_to_end(&mut environment)?;
    }
    Ok(environment)
}

fn session(pid: Pid) -> Option<i32> {
    field(&stat(pid)?, 6)?.parse().ok()
}

fn stat(pid: Pid) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

/// Returns field `number` of `/proc/PID/stat`, from 3 (the state) on (proc_pid_stat(5)).
fn field(stat: &str, number: usize) -> Option<&str> {
    // The name may contain blanks and parentheses.
    stat.rsplit_once(')')?.1.split_whitespace().nth(number.checked_sub(3)?)
}

/// Whether the process has ended, and has no environment any more.
fn has_ended(pid: Pid) -> bool {
    let stat = stat(pid).unwrap_or_default();
    field(&stat, 3).is_none_or(|state| ["Z", "X"].contains(&state))
}

/// Returns the children of all threads of this process (`/proc/PID/task/TID/children`).
pub fn children() -> BTreeSet<Pid> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return BTreeSet::new() };
    let lists = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let numbers = |list: String| -> Vec<Pid> {
        list.split_whitespace().filter_map(|n| n.parse().ok()).map(Pid::from_raw).collect()
    };
    lists.flat_map(numbers).collect()
}

/// What the [`Subreaper`] must restore.
static CHANGED: AtomicU8 = AtomicU8::new(NOTHING);
const NOTHING: u8 = 0;
const WAS_NONE: u8 = 1;
const WAS_ONE: u8 = 2;

/// While this exists, orphans of our descendants become our children.
#[derive(Debug)]
pub struct Subreaper(());

impl Subreaper {
    /// Makes this process a subreaper.
    pub fn become_one() -> Result<Self, Errno> {
        let before = if prctl::get_child_subreaper()? { WAS_ONE } else { WAS_NONE };
        prctl::set_child_subreaper(true)?;
        CHANGED.store(before, Ordering::SeqCst);
        Ok(Self(()))
    }
}

impl Drop for Subreaper {
    fn drop(&mut self) {
        let before = CHANGED.swap(NOTHING, Ordering::SeqCst);
        if before != NOTHING {
            let _ = prctl::set_child_subreaper(before == WAS_ONE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_follow_the_name() {
        let stat = "7 (a) b) S 5 6 8 0";
        assert_eq!((field(stat, 3), field(stat, 6), field(stat, 8)), (Some("S"), Some("8"), None));
        assert_eq!((field("", 3), field(stat, 2)), (None, None));
        assert!(!has_ended(Pid::this()) && session(Pid::this()).is_some());
    }
}
