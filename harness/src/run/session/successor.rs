//! A new VMM that is started while another runs, and waits to take over its VM (`cpr-transfer`).

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::backend::{Channels, Launch};
use crate::observe::files::Files;
use crate::observe::listening;
use crate::observe::poll::{self, Deadline};
use crate::observe::process::Stat;
use crate::observe::qmp::Qmp;
use crate::process::environment::EnvironmentError;
use crate::process::vm::{Start, Vm};
use crate::run::failure::StepError;
use crate::run::session::wrapped::{Under, prefix};
use crate::run::session::{Session, executable, look};
use crate::run::update::command::PATH_FOLDER;
use crate::scenario::{Inject, Migrate};

/// A new VMM that has not taken over yet.
pub(super) struct Successor {
    /// Its process.
    pub vm: Vm,
    /// Its files.
    pub files: Files,
    /// The sockets on which it waits.
    pub channels: Channels,
    /// The file with its standard output and error.
    pub console: PathBuf,
    /// The connections to it, the second of which only listens, once there are any.
    pub clients: Option<[Qmp; 2]>,
    /// It was killed, so it leaves its files behind.
    killed: bool,
}

impl Session<'_> {
    /// Starts a new VMM as an operator does, and waits until it listens on its `cpr` channel.
    pub(super) fn start_successor(
        &mut self,
        migrate: &Migrate,
        channels: &Channels,
    ) -> Result<Successor, StepError> {
        let backend = self.next_build();
        let files = self.files.for_update(self.tried);
        let launch = Launch { files: &files, ..self.launch() };
        let mut arguments = backend.transfer_arguments(launch, channels);
        let kind = migrate.new_vmm;
        backend.change_arguments(kind.arguments(), &mut arguments);
        if let Some(Inject { point, action }) = &migrate.new_vmm_fault {
            arguments.extend(["--failpoint".to_owned(), format!("{point}={action}")]);
        }
        let binary = backend.binary();
        self.updated = self.executes(backend, true)?;
        let console = self.evidence.console_of(&files);
        let text = format!(
            "start {}{} {} to take over",
            prefix(backend),
            binary.display(),
            arguments.join(" ")
        );
        self.evidence.timeline.say("harness", text);
        let vm = Vm::start(Start {
            wrapper: backend.wrapper(),
            binary,
            arguments: &arguments,
            folder: &self.work,
            path_folder: &self.work.join(PATH_FOLDER),
            console: &console,
            keep: self.options.keep,
            seccomp: self.case.vm.seccomp,
            signals: self.case.vm.signals,
            cgroup: None,
            notify: self.notify.path(),
            audit: self.options.audits.then(|| self.work.join(look::AUDIT)).as_deref(),
            stalled: None,
        })?;
        self.watchdog_also_ends(vm.group());
        let text = format!("the new VMM is process {}", vm.pid());
        self.evidence.timeline.say("harness", text);
        self.asked = arguments;
        let channels = channels.clone();
        let mut successor =
            Successor { vm, files, channels, console, clients: None, killed: false };
        if kind.listens() {
            successor.await_listening(self.options.patience.greeting)?;
            Under::find(&mut successor.vm, backend, &executable(backend.executable())?)?;
        } else if successor.vm.await_end(self.options.patience.end).is_none() {
            let limit = self.options.patience.end;
            let why = format!("{limit:?} after its start the new VMM with {kind:?} still runs");
            return Err(StepError::Process(why));
        }
        Ok(successor)
    }

    /// Ends a new VMM that did not take over. What it left behind is removed, as an operator does
    /// before the next update; the check `leftovers` reports what one left that ended by itself.
    pub(super) fn abandon(&mut self, mut successor: Successor) -> Result<(), StepError> {
        let patience = self.options.patience;
        let waits_on = successor.stopped_or_waiting();
        let ended = match waits_on {
            true => None,
            // It notices the failure a moment later than its predecessor.
            false => successor.vm.await_end(patience.settle),
        };
        let how = match ended {
            Some(status) => {
                // By a fault.
                successor.killed |= status.signal().is_some();
                format!("has ended ({status})")
            }
            None => {
                successor.kill();
                "was killed".to_owned()
            }
        };
        let pid = successor.vm.pid();
        let said = successor.last_words();
        let text = format!("the new VMM, process {pid}, {how}; last console line: {said}");
        self.evidence.timeline.say("harness", text);
        self.watchdog_no_longer_ends(successor.vm.group());
        if let Some(clients) = &successor.clients {
            self.former_violations.extend(clients.iter().flat_map(Qmp::violations));
        }
        let left = successor.left(self.next_build().second_qmp(&successor.files));
        for path in &left {
            std::fs::remove_file(path).map_err(EnvironmentError::file("remove", path))?;
        }
        if !successor.killed {
            self.left_by_new.extend(left);
        }
        Ok(())
    }
}

impl Successor {
    fn await_listening(&mut self, limit: Duration) -> Result<(), StepError> {
        let listens = poll::until(Deadline::after(limit), || {
            if listening::on(Path::new(&self.channels.cpr)) {
                return Some(Ok(()));
            }
            self.vm.ended().map(Err)
        });
        let cpr = &self.channels.cpr;
        let said = self.last_words();
        Err(StepError::Process(match listens {
            Some(Ok(())) => return Ok(()),
            Some(Err(status)) => format!(
                "the new VMM has ended ({status}) before it listened on {cpr}; last console line: {said}"
            ),
            None => format!(
                "{limit:?} after its start the new VMM does not listen on {cpr}; last console line: {said}"
            ),
        }))
    }

    /// Stops its process with SIGSTOP, and waits until it stands.
    pub fn hold(&self, limit: Duration) -> Result<(), StepError> {
        let pid = self.vm.pid();
        kill(Pid::from_raw(pid), Signal::SIGSTOP)
            .map_err(|errno| StepError::Process(format!("cannot stop process {pid}: {errno}")))?;
        let stands = || Stat::read(pid).is_ok_and(|stat| stat.state == 'T').then_some(());
        poll::until(Deadline::after(limit), stands).ok_or_else(|| {
            let why = format!("{limit:?} after SIGSTOP the new VMM, process {pid}, still runs");
            StepError::Process(why)
        })
    }

    /// Kills its process and waits for its end.
    pub fn kill(&mut self) {
        self.killed = true;
        self.vm.kill();
    }

    /// Why it cannot be connected to any more, once it has ended.
    pub fn ended(&mut self) -> Option<String> {
        let status: ExitStatus = self.vm.ended()?;
        let said = self.last_words();
        Some(format!("the new VMM has ended ({status}); last console line: {said}"))
    }

    /// Whether it has not noticed that it will not take over: it is stopped, or no one has
    /// connected to it.
    fn stopped_or_waiting(&self) -> bool {
        Stat::read(self.vm.pid()).is_ok_and(|stat| stat.state == 'T')
            || listening::on(Path::new(&self.channels.cpr))
    }

    /// The sockets of the update that still exist.
    pub fn channels_left(&self) -> Vec<PathBuf> {
        let Channels { main, cpr } = &self.channels;
        let both = [main, cpr].map(PathBuf::from).into_iter();
        both.filter(|path| path.symlink_metadata().is_ok()).collect()
    }

    fn last_words(&self) -> String {
        let said = std::fs::read_to_string(&self.console).unwrap_or_default();
        said.lines().last().unwrap_or("none").to_owned()
    }

    /// Its sockets and its PID file that still exist.
    fn left(&self, second_qmp: String) -> Vec<PathBuf> {
        let Files { qmp, serial_socket, pid_file, .. } = &self.files;
        let Channels { main, cpr } = &self.channels;
        let mut all: Vec<PathBuf> =
            [qmp, &second_qmp, serial_socket, pid_file, main, cpr].map(PathBuf::from).into();
        all.dedup();
        all.retain(|path| path.symlink_metadata().is_ok());
        all
    }
}
