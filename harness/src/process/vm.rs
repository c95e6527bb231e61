//! The VMM process that the harness starts.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};

use super::child::{die_with, kill_group};
use crate::coverage;
use crate::observe::kvm_state;
use crate::observe::patience::patient;
use crate::observe::poll::{self, Deadline};
use crate::observe::proc_error::ProcError;
use crate::observe::process::{self, Executable, Stat};
use crate::process::cgroup::Cgroup;
use crate::process::environment::EnvironmentError;
use crate::process::filtered::NoExecve;
use crate::process::stalled::StalledPipe;
use crate::process::{program, signals};
use crate::scenario::{Seccomp, Signals};

/// How a VMM is started.
pub struct Start<'a> {
    /// The words before the file: a program that executes it, and its arguments.
    pub wrapper: &'a [String],
    /// The file to execute.
    pub binary: &'a Path,
    /// Its arguments.
    pub arguments: &'a [String],
    /// The working folder: a program executed by mistake may write there.
    pub folder: &'a Path,
    /// A folder put first in `PATH`.
    pub path_folder: &'a Path,
    /// The file for standard output and error.
    pub console: &'a Path,
    /// Whether the VMM may outlive the harness.
    pub keep: bool,
    /// The seccomp filter to start it under.
    pub seccomp: Option<Seccomp>,
    /// The signal settings to start it with.
    pub signals: Option<Signals>,
    /// The memory cgroup to start it in.
    pub cgroup: Option<Cgroup>,
    /// The socket on which it notifies its service manager.
    pub notify: &'a Path,
    /// The path for the data that audits compare, if audits run.
    pub audit: Option<&'a Path>,
    /// An unread pipe for its log or standard error.
    pub stalled: Option<StalledPipe>,
}

/// The variable that makes a VMM take over instead of booting.
const STATE_VARIABLE: &str = "CPR_EXEC_STATE";

/// The variable with the service manager's socket.
const NOTIFY_VARIABLE: &str = "NOTIFY_SOCKET";

/// The limit from zombie to reaped: all threads must have exited too.
const REAPED: Duration = Duration::from_secs(5);

/// The limit from SIGKILL to reaped, on a busy host that emulates.
const KILLED: Duration = Duration::from_secs(60);

/// A VMM process, killed when this is dropped unless it is to be kept.
pub struct Vm {
    /// The process as it was started, or as it was when it took over the VM.
    pub started: Stat,
    /// The process group of all processes that the VM has had: the PID of the first.
    group: i32,
    /// The process that was started, if that is a wrapper and the VMM is a child of it.
    wrapper: Option<i32>,
    /// Processes that have become VMMs and may not have been reaped yet, the newest last.
    successors: Vec<i32>,
    /// The VMM's own memory cgroup, if it has one; removed last.
    pub cgroup: Option<Cgroup>,
    /// The unread pipe that the VMM logs to, if it does.
    stalled: Option<StalledPipe>,
    ended: Option<ExitStatus>,
    keep: bool,
}

impl Vm {
    /// Starts the VMM.
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
        let binary = start.binary.as_os_str();
        let mut words = start.wrapper.iter().map(OsStr::new).chain([binary]);
        let mut command = Command::new(words.next().unwrap_or(binary));
        command
            .args(words)
            .args(start.arguments)
            .current_dir(start.folder)
            .env_remove(STATE_VARIABLE)
            .envs(own.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(console)
            .stderr(errors)
            // Its own process group: Ctrl-C reaches only the harness, and killing the group
            // reaches everything that the VMM leaves behind.
            .process_group(0);
        let settings = start.signals;
        let parent = (!start.keep).then(nix::unistd::getpid);
        let processes = start.cgroup.as_ref().map(Cgroup::processes).transpose()?;
        let begin = move || {
            signals::reset()?;
            settings.map_or(Ok(()), signals::set)?;
            program::inherit_nothing()?;
            parent.map_or(Ok(()), die_with)?;
            processes.as_ref().map_or(Ok(()), |mut file| file.write_all(b"0"))
        };
        // SAFETY: all of these are async-signal-safe and the closure does nothing else.
        unsafe { command.pre_exec(begin) };
        if start.seccomp == Some(Seccomp::NoExecve) {
            let others = std::env::vars_os().filter(|(name, _)| {
                name != STATE_VARIABLE && own.iter().all(|(ours, _)| name != ours)
            });
            let environment: Vec<_> = others.chain(own.iter().cloned()).collect();
            let program = NoExecve::new(start.binary, start.arguments, &environment);
            let program = program.map_err(spawn_error)?;
            // SAFETY: only makes system calls, on data prepared before. It comes last and replaces
            // the `execve` that would follow.
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
        let (group, successors) = (pid, Vec::new());
        let Start { cgroup, stalled, .. } = start;
        let wrapper = None;
        Ok(Self { started, group, wrapper, successors, cgroup, stalled, ended: None, keep: false })
    }

    /// Returns the PID of the current process.
    pub fn pid(&self) -> i32 {
        self.started.pid
    }

    /// Returns the process group, which is the same for every process of the VM.
    pub fn group(&self) -> i32 {
        self.group
    }

    /// Switches to process `pid`, in which the VM continues: an orphan that is now a child of this
    /// process. The previous process must have been reaped.
    pub fn follow(&mut self, pid: i32) -> Result<&Stat, ProcError> {
        // Under the lock, so that `orphans` does not reap the process before it is registered.
        let read = program::exclusively(|| {
            signals::register_successor(pid);
            Stat::read(pid)
        });
        let started = read.inspect_err(|_| signals::unregister_successor(pid))?;
        self.successors.push(pid);
        (self.started, self.ended, self.wrapper) = (started, None, None);
        Ok(&self.started)
    }

    /// Finds the VMM that a wrapper has started, now that the VMM listens: the process that was
    /// started if the wrapper executed the VMM or its own substitute, else its descendant that executes
    /// `executable`, in whatever group: gdb gives what it runs a group of its own.
    pub fn find_under_wrapper(&mut self, executable: &Executable) -> Result<(), ProcError> {
        let is_vmm = |pid| Executable::of(pid).is_ok_and(|of| of.inode == executable.inode);
        if is_vmm(self.group) {
            return Ok(());
        }
        let mut descendants = process::descendants(self.group)?.into_iter();
        if let Some(vmm) = descendants.find(|child| is_vmm(child.pid)) {
            self.wrapper = Some(self.group);
            self.started = vmm;
        }
        Ok(())
    }

    /// Returns the wrapper's process, if the VMM is a child of it.
    pub fn wrapper(&self) -> Option<i32> {
        self.wrapper
    }

    /// Returns the exit status if the process has ended; that of the wrapper, whose child it is.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = match self.wrapper {
                Some(_) if Stat::read(self.pid()).is_ok_and(|stat| stat.is_alive()) => None,
                wrapper => reap(wrapper.unwrap_or(self.pid())),
            };
        }
        self.ended
    }

    /// Returns the exit status if the process has ended or is about to: it may be a zombie for a
    /// while before it can be reaped.
    pub fn ended_or_ending(&mut self) -> Option<ExitStatus> {
        match Stat::read(self.pid()) {
            Ok(stat) if stat.is_alive() => self.ended(),
            _ => self.await_end(patient(REAPED)),
        }
    }

    /// Waits up to `limit` for the process to end.
    pub fn await_end(&mut self, limit: Duration) -> Option<ExitStatus> {
        poll::until(Deadline::after(limit), || self.ended())
    }

    /// Sends SIGKILL to the process group and waits for the process to end.
    pub fn kill(&mut self) {
        kill_group(self.group);
        self.await_end(patient(KILLED));
    }

    /// Leaves the VMM running when this is dropped.
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
        self.successors.drain(..).for_each(signals::unregister_successor);
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

/// Reaps the child `pid` and returns its exit status if it has ended. If it was reaped elsewhere,
/// its status is unknown and reported as SIGKILL.
fn reap(pid: i32) -> Option<ExitStatus> {
    match waitpid(Pid::from_raw(pid), WaitOptions::NOHANG) {
        Ok(None) | Err(Errno::INTR) => None,
        Ok(Some((_, status))) => Some(ExitStatus::from_raw(status.as_raw())),
        Err(_) => Some(ExitStatus::from_raw(libc::SIGKILL)),
    }
}
