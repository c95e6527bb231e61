//! A new VMM in another process, which takes a VM over: from one that still runs, or from a file.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::backend::{Channels, Launch};
use crate::gateway::Gateway;
use crate::observe::files::Files;
use crate::observe::poll::{self, Deadline};
use crate::observe::process::Stat;
use crate::observe::qmp::Qmp;
use crate::process::environment::EnvironmentError;
use crate::process::vm::{Start, Vm};
use crate::run::failure::StepError;
use crate::run::session::wrapped::{Under, prefix};
use crate::run::session::{Session, executable, look};
use crate::run::update::command::PATH_FOLDER;
use crate::run::update::fault;
use crate::scenario::{Inject, Mode, NewVmm};

/// A new VMM that has not taken over yet.
pub(super) struct Successor {
    /// Its process.
    pub vm: Vm,
    /// What serves QMP for it, if it does not.
    pub gateway: Option<Gateway>,
    /// Its files.
    pub files: Files,
    /// Where it gets the VM from.
    pub channels: Channels,
    /// The file with its standard output and error.
    pub console: PathBuf,
    /// The connections to it, the second of which only listens, once there are any.
    pub clients: Option<[Qmp; 2]>,
    /// It was killed, so it leaves its files behind.
    killed: bool,
}

impl Session<'_> {
    /// Starts a new VMM as an operator does. If it is to wait, waits until it listens; if it cannot
    /// take the VM over, waits until it has ended.
    pub(super) fn start_successor(
        &mut self,
        kind: NewVmm,
        fault: Option<&Inject>,
        channels: &Channels,
        mode: Mode,
    ) -> Result<Successor, StepError> {
        let backend = self.next_build();
        let files = self.files.for_update(self.tried);
        let files = if mode == Mode::Normal { files.with_copied_ram(self.tried) } else { files };
        let launch = Launch { files: &files, ..self.launch() };
        let mut arguments = backend.transfer_arguments(launch, channels);
        let gateway = Gateway::prepare(backend, launch, Some(channels))
            .map_err(EnvironmentError::file("prepare to serve QMP on", &files.qmp))?;
        backend.change_arguments(kind.arguments(), &mut arguments);
        if let Some(Inject { point, action }) = fault {
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
        let gateway = gateway.map(|prepared| prepared.serve(vm.pid())).transpose();
        let gateway = gateway.map_err(EnvironmentError::file("serve QMP on", &files.qmp))?;
        let text = format!("the new VMM is process {}", vm.pid());
        self.evidence.timeline.say("harness", text);
        self.asked = arguments;
        let loads = !channels.wait();
        let channels = channels.clone();
        let mut successor =
            Successor { vm, gateway, files, channels, console, clients: None, killed: false };
        if kind.listens() && !loads {
            successor.await_listening(self.options.patience.greeting)?;
        }
        let ends = !kind.listens() || loads && (!kind.is_default() || fault.is_some());
        if !ends && !loads {
            self.find_under_wrapper(&mut successor)?;
        } else if ends && successor.vm.await_end(self.options.patience.end).is_none() {
            let limit = self.options.patience.end;
            let fault = fault.map(|Inject { point, action }| format!(" with {action} at {point}"));
            let kind = format!("{kind:?}{}", fault.unwrap_or_default());
            let why = format!("{limit:?} after its start the new VMM ({kind}) still runs");
            return Err(StepError::Process(why));
        }
        Ok(successor)
    }

    /// Finds the new VMM, which listens, below a wrapper that started it.
    pub(super) fn find_under_wrapper(&self, new: &mut Successor) -> Result<(), StepError> {
        let backend = self.next_build();
        Under::find(&mut new.vm, backend, &executable(backend.executable())?)?;
        Ok(())
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
                let checked = if waits_on { Ok(()) } else { self.check_waiting(&mut successor) };
                successor.kill();
                checked?;
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
        // It serves no more once the process has ended, and removes its socket.
        drop(successor.gateway.take());
        let left = successor.left(self.next_build().second_qmp(&successor.files));
        // The harness made these.
        let fifo =
            |path: &&PathBuf| path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_fifo());
        let fifos: Vec<PathBuf> = left.iter().filter(fifo).cloned().collect();
        for path in &left {
            match std::fs::remove_file(path) {
                // What served QMP for it has just removed its socket.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.map_err(EnvironmentError::file("remove", path))?,
            }
        }
        if successor.files.ram != self.files.ram {
            // It may have got as far as to create it, and a VMM never removes it.
            let _ = std::fs::remove_file(&successor.files.ram);
        }
        if !successor.killed {
            self.left_by_new.extend(left.into_iter().filter(|path| !fifos.contains(path)));
        }
        Ok(())
    }
}

impl Successor {
    /// Checks that a VMM that was to fail has done so: with an error, or as `fault` says.
    pub fn failed_as_it_must(&mut self, fault: Option<&Inject>) -> Result<(), String> {
        let said = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let logs = [said(Path::new(&self.files.log)), said(&self.console)];
        let failed = match (fault, self.vm.ended()) {
            (Some(inject), Some(status)) => {
                !status.success() && logs.iter().any(|log| fault::was_hit(inject, log))
            }
            (None, Some(status)) => status.code().is_some_and(|code| code != 0),
            (_, None) => false,
        };
        if failed {
            return Ok(());
        }
        let how = self.ended().unwrap_or_else(|| "the new VMM still runs".to_owned());
        let wanted = match fault {
            Some(Inject { point, action }) => format!("reach {point}, armed with {action}"),
            None => "exit with an error".to_owned(),
        };
        Err(format!("a new VMM should {wanted}, and not load the VM: {how}"))
    }

    fn await_listening(&mut self, limit: Duration) -> Result<(), StepError> {
        let listens = poll::until(Deadline::after(limit), || {
            if self.channels.are_listened_on() {
                return Some(Ok(()));
            }
            self.vm.ended().map(Err)
        });
        let address = self.channels.first();
        let said = self.last_words();
        Err(StepError::Process(match listens {
            Some(Ok(())) => return Ok(()),
            Some(Err(status)) => format!(
                "the new VMM has ended ({status}) before it listened on {address}; last console line: {said}"
            ),
            None => format!(
                "{limit:?} after its start the new VMM does not listen on {address}; last console line: {said}"
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
            || self.channels.are_listened_on()
    }

    /// The sockets of the update that still exist.
    pub fn channels_left(&self) -> Vec<PathBuf> {
        let sockets = self.channels.sockets().into_iter().map(PathBuf::from);
        sockets.filter(|path| path.symlink_metadata().is_ok()).collect()
    }

    fn last_words(&self) -> String {
        let said = std::fs::read_to_string(&self.console).unwrap_or_default();
        said.lines().last().unwrap_or("none").to_owned()
    }

    /// Its sockets and its PID file that still exist.
    fn left(&self, second_qmp: String) -> Vec<PathBuf> {
        let Files { qmp, serial_socket, pid_file, .. } = &self.files;
        let own = [qmp, &second_qmp, serial_socket, pid_file].map(String::as_str);
        let mut all: Vec<PathBuf> =
            own.into_iter().chain(self.channels.sockets()).map(PathBuf::from).collect();
        // What it names after its socket.
        let name = Path::new(qmp).file_name().unwrap_or_default().as_encoded_bytes();
        let folder = Path::new(qmp).parent().and_then(|folder| folder.read_dir().ok());
        let named = folder.into_iter().flatten().flatten().map(|entry| entry.path());
        all.extend(named.filter(|path| {
            path.file_name().is_some_and(|of| of.as_encoded_bytes().starts_with(name))
        }));
        all.sort();
        all.dedup();
        all.retain(|path| path.symlink_metadata().is_ok());
        all
    }
}
