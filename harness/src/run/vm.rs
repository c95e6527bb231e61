//! A VMM process that the harness has started.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::cgroup::Cgroup;
use super::filtered::NoExecve;
use super::stalled::StalledPipe;
use super::{EnvironmentError, program, signals};
use crate::coverage;
use crate::observe::kvm_state;
use crate::observe::poll::{self, Deadline};
use crate::observe::process::{ProcError, Stat};
use crate::scenario::{Seccomp, Signals};

/// How a VMM is started.
pub struct Start<'a> {
    /// The file to execute.
    pub binary: &'a Path,
    /// Its arguments.
    pub arguments: &'a [String],
    /// Where it works: what it executes by mistake may write there.
    pub folder: &'a Path,
    /// A folder put first in its `PATH`.
    pub path_folder: &'a Path,
    /// Where its standard output and error go.
    pub console: &'a Path,
    /// It may outlive the harness.
    pub keep: bool,
    /// A filter that it is started under.
    pub seccomp: Option<Seccomp>,
    /// Signal settings that it is started with.
    pub signals: Option<Signals>,
    /// A memory cgroup that it is started in.
    pub cgroup: Option<Cgroup>,
    /// The socket that it tells its service manager on.
    pub notify: &'a Path,
    /// Where it writes what audits compare, if it does.
    pub audit: Option<&'a Path>,
    /// A pipe that nobody reads, for what it logs.
    pub stalled: Option<StalledPipe>,
}

/// A VMM that finds this takes over instead of booting.
const STATE_VARIABLE: &str = "CPR_EXEC_STATE";

/// Where a service manager is told.
const NOTIFY_VARIABLE: &str = "NOTIFY_SOCKET";

/// From zombie to reaped: its threads must have ended too.
const REAPED: Duration = Duration::from_secs(5);

/// From SIGKILL to reaped, on a host that emulates and is busy.
const KILLED: Duration = Duration::from_secs(60);

/// A VMM process; it ends when this is dropped, unless it is to be kept.
pub struct Vm {
    /// The process as it was started, or as it was when the VM was found in it.
    pub started: Stat,
    /// The process group of all processes that the VM has had: the PID of the first.
    group: i32,
    /// Processes that have become VMMs and were not waited for yet, the newest last.
    heirs: Vec<i32>,
    /// Its memory cgroup, if it has one of its own; removed last.
    pub cgroup: Option<Cgroup>,
    /// What it logs to, if nobody reads that.
    stalled: Option<StalledPipe>,
    ended: Option<ExitStatus>,
    keep: bool,
}

impl Vm {
    /// Starts it.
    pub fn start(mut start: Start<'_>) -> Result<Self, EnvironmentError> {
        coverage::executed(start.arguments);
        let open = || File::options().append(true).create(true).open(start.console);
        let console = open().map_err(EnvironmentError::file("open", start.console))?;
        let errors = match start.stalled.as_mut().and_then(|pipe| pipe.stderr.take()) {
            Some(pipe) => File::from(pipe),
            None => console.try_clone().map_err(EnvironmentError::file("open", start.console))?,
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(start.path_folder.to_owned());
        let path = std::env::join_paths(folders.chain(std::env::split_paths(&path)));
        let path = path.unwrap_or_default();
        let spawn_error =
            |source| EnvironmentError::Spawn { path: start.binary.to_owned(), source };
        let mut own: Vec<(OsString, OsString)> =
            vec![("PATH".into(), path), (NOTIFY_VARIABLE.into(), start.notify.into())];
        own.extend(start.audit.map(|path| (kvm_state::FILE_VARIABLE.into(), path.into())));
        let mut command = Command::new(start.binary);
        command
            .args(start.arguments)
            .current_dir(start.folder)
            .env_remove(STATE_VARIABLE)
            .envs(own.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(console)
            .stderr(errors)
            // A group of its own: Ctrl-C is for the harness, and killing the group reaches
            // whatever the VMM leaves behind.
            .process_group(0);
        // SAFETY: it is async-signal-safe and the closure does nothing else.
        unsafe { command.pre_exec(signals::reset) };
        if let Some(settings) = start.signals {
            // SAFETY: it is async-signal-safe and the closure does nothing else.
            unsafe { command.pre_exec(move || signals::set(settings)) };
        }
        // SAFETY: it is async-signal-safe and the closure does nothing else.
        unsafe { command.pre_exec(program::inherit_nothing) };
        if !start.keep {
            let parent = nix::unistd::getpid();
            // SAFETY: prctl and getppid are async-signal-safe and the closure calls nothing else.
            unsafe { command.pre_exec(move || die_with(parent)) };
        }
        if let Some(cgroup) = &start.cgroup {
            let processes = cgroup.processes()?;
            // SAFETY: write is async-signal-safe and the closure calls nothing else.
            unsafe { command.pre_exec(move || (&processes).write_all(b"0")) };
        }
        if start.seccomp == Some(Seccomp::NoExecve) {
            let others = std::env::vars_os().filter(|(name, _)| {
                name != STATE_VARIABLE && own.iter().all(|(ours, _)| name != ours)
            });
            let environment: Vec<_> = others.chain(own.iter().cloned()).collect();
            let program = NoExecve::new(start.binary, start.arguments, &environment);
            let program = program.map_err(spawn_error)?;
            // SAFETY: system calls only, on what was made before. It comes last, in place of the
            // `execve` that would follow.
            unsafe { command.pre_exec(move || Err(program.exec())) };
        }
        let child = program::spawn(&mut command).map_err(spawn_error)?;
        let pid = child.id() as i32;
        let read = Stat::read(pid).map_err(|e| spawn_error(std::io::Error::other(e)));
        let started = match read {
            Ok(started) => started,
            Err(e) => {
                kill_group(pid);
                return Err(e);
            }
        };
        let (group, heirs) = (pid, Vec::new());
        let Start { cgroup, stalled, .. } = start;
        Ok(Self { started, group, heirs, cgroup, stalled, ended: None, keep: false })
    }

    /// Its PID.
    pub fn pid(&self) -> i32 {
        self.started.pid
    }

    /// Its process group, whichever process it is.
    pub fn group(&self) -> i32 {
        self.group
    }

    /// The VM continues in process `pid`, an orphan that is a child of this process now. The one
    /// before must have been waited for.
    pub fn follow(&mut self, pid: i32) -> Result<&Stat, ProcError> {
        // While nobody reaps orphans.
        let read = program::alone(|| {
            signals::register_heir(pid);
            Stat::read(pid)
        });
        let started = read.inspect_err(|_| signals::forget_heir(pid))?;
        self.heirs.push(pid);
        (self.started, self.ended) = (started, None);
        Ok(&self.started)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = reap(self.pid());
        }
        self.ended
    }

    /// How it ended, if it has or is about to: a process is a zombie before it can be reaped.
    pub fn ended_or_ending(&mut self) -> Option<ExitStatus> {
        match Stat::read(self.pid()) {
            Ok(stat) if stat.is_alive() => self.ended(),
            _ => self.await_end(REAPED),
        }
    }

    /// Waits for its end.
    pub fn await_end(&mut self, limit: Duration) -> Option<ExitStatus> {
        poll::until(Deadline::after(limit), || self.ended())
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        kill_group(self.group);
        self.await_end(KILLED);
    }

    /// Leaves it up when this is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
        if let Some(pipe) = self.stalled.take() {
            pipe.keep();
        }
        if let Some(cgroup) = &mut self.cgroup {
            cgroup.keep();
        }
        self.forget();
    }

    fn forget(&mut self) {
        signals::forget(self.group);
        self.heirs.drain(..).for_each(signals::forget_heir);
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !self.keep {
            self.kill();
            self.forget();
        }
    }
}

/// How the child `pid` has ended, if it has; one that another thread has waited for ended somehow.
fn reap(pid: i32) -> Option<ExitStatus> {
    let mut status = 0;
    // SAFETY: writes one integer of ours.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
    match Errno::result(waited) {
        Ok(0) | Err(Errno::EINTR) => None,
        Ok(_) => Some(ExitStatus::from_raw(status)),
        Err(_) => Some(ExitStatus::from_raw(libc::SIGKILL)),
    }
}

/// Kills a process group; one that is gone already is no error.
pub fn kill_group(pid: i32) {
    let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
}

/// In a child: has it die with `parent`, which has started it. Async-signal-safe.
pub(crate) fn die_with(parent: Pid) -> std::io::Result<()> {
    // It is the death of the thread that counts, which outlives what it has started.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // A parent that died before that sends nothing any more.
    if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
}
