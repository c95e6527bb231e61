//! Checks that a VMM that was killed, or ended otherwise, leaves nothing behind but its files, so
//! that another VMM can start in its folder.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::observe::outside::Outside;
use crate::observe::poll::{self, Deadline};
use crate::observe::process::{self, Stat};
use crate::process::orphans;

/// Name of this check, which replaces those of a running VMM.
pub const NAME: &str = "killed";

/// A VMM that has ended and been reaped.
#[derive(Clone, Copy)]
pub struct Killed<'a> {
    /// What ended it, such as "SIGKILL".
    pub by: &'a str,
    /// Its PID.
    pub pid: i32,
    /// Its process group.
    pub group: i32,
    /// The folder of its case, which is in its `PATH` and in that of every process it started.
    pub work: &'a Path,
    /// Its QMP socket.
    pub socket: &'a Path,
    /// What existed outside `work` before it was started.
    pub outside: &'a Outside,
    /// Time allowed for its processes to end.
    pub limit: Duration,
}

/// Waits until no process is left; reports and kills those that outlive the limit.
pub fn check(killed: &Killed<'_>) -> Result<(), String> {
    let deadline = Deadline::after(killed.limit);
    let Killed { by, pid, limit, .. } = killed;
    // Twice in a row: in the middle of an exec a process has no environment.
    let mut quiet = 0;
    let mut left = Vec::new();
    poll::until(deadline, || {
        orphans::reap();
        left = killed.processes();
        quiet = if left.is_empty() { quiet + 1 } else { 0 };
        (quiet == 2).then_some(())
    });
    if !left.is_empty() {
        let listed: Vec<String> =
            left.iter().map(|p| format!("{} ({}, state {})", p.pid, p.comm, p.state)).collect();
        for process in &left {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        return Err(format!(
            "{limit:?} after {by} to process {pid} it still has processes: {}",
            listed.join(", ")
        ));
    }
    let silent =
        poll::until(deadline, || UnixStream::connect(killed.socket).is_err().then_some(()));
    if silent.is_none() {
        let socket = killed.socket.display();
        return Err(format!("after {by} a process still listens on {socket}"));
    }
    match killed.outside.new_of(*pid).as_slice() {
        [] => Ok(()),
        files => Err(format!("after {by} there are files outside the VM's folder: {files:?}")),
    }
}

impl Killed<'_> {
    fn processes(&self) -> Vec<Stat> {
        let path = self.work.as_os_str().as_encoded_bytes();
        let mut left = process::with_environment(path).unwrap_or_default();
        left.extend(process::group(self.group).unwrap_or_default());
        left.sort_by_key(|process| process.pid);
        left.dedup_by_key(|process| process.pid);
        left
    }
}
