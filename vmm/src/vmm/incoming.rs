//! The new process's side of an update: load, resume, report.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use cpr_qmp::event::EventKind;
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;

use super::{Finishing, Vmm};
use crate::devices::serial::SerialHost;
use crate::machine::MachineError;
use crate::machine::order::FIRST_WITH_STATE;
use crate::migration::channel::{self, ChannelError};
use crate::migration::cpr::fall_back::ArmError;
use crate::migration::cpr::helper::AdoptedHelper;
use crate::migration::cpr::named_fds::NamedFd;
use crate::migration::cpr::phases::Phases;
use crate::migration::cpr::state::{CprState, StateFd, WriteError, monotonic_ns};
use crate::migration::cpr::take_over::WayBack;

/// Everything of an update but the state itself.
pub struct AwaitedState {
    /// What the old process said.
    pub cpr: CprState,
    /// The serial port's host side, for the machine that is to come.
    pub host: SerialHost,
    /// When what was done until now.
    pub phases: Phases,
    /// How to go back.
    pub way_back: WayBack,
    /// What going back needs, and nobody else.
    pub carried: Carried,
}

/// Descriptors that are kept open until the guest runs.
pub struct Carried {
    /// The CPR state.
    pub memfd: OwnedFd,
    /// The copy of the saved state.
    pub saved: Option<File>,
    /// The old binary.
    pub _binary: Option<OwnedFd>,
    /// What the new command line has no use for: its numbers must not become others'.
    pub unused: Vec<OwnedFd>,
}

/// Where the saved state is.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// In the migration channel's file.
    File(&'a Path),
    /// In the copy that crossed exec, for an old binary that was returned to.
    Copy,
}

/// Why a saved state could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A fail point.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// Nothing is awaited.
    #[error("no incoming migration is expected: the VMM was not started with --incoming defer")]
    NotAwaited,
    /// The channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The old binary left none.
    #[error("no copy of the saved state crossed exec")]
    NoCopy,
    /// The way back.
    #[error(transparent)]
    Arm(#[from] ArmError),
    /// It is a good state, but another one.
    #[error("file:{0} holds a state that this update did not write")]
    OtherState(String),
    /// The machine.
    #[error("cannot load file:{path}: {source}")]
    Machine {
        /// The file.
        path: String,
        /// Why.
        source: MachineError,
    },
}

/// Why the way back could not be made that of the present.
#[derive(Debug, thiserror::Error)]
enum CheckpointError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Arm(#[from] ArmError),
    #[error("dup3: {0}")]
    Replace(nix::errno::Errno),
}

impl Vmm {
    /// Loads the state and makes the run state what it was.
    pub(super) fn load(&mut self, source: Source<'_>) -> Result<(), LoadError> {
        let awaited = self.awaited.as_mut().ok_or(LoadError::NotAwaited)?;
        let deadline = Duration::from_millis(awaited.way_back.record.deadline_ms);
        awaited.way_back.armed.set_deadline(Some(deadline))?;
        let (name, read) = match (source, &awaited.carried.saved) {
            (Source::Copy, Some(copy)) => {
                let name = "the copy that crossed exec".to_owned();
                let read = channel::read_open(copy, Path::new(&name))?;
                (name, read)
            }
            (Source::Copy, None) => return Err(LoadError::NoCopy),
            (Source::File(path), _) => (path.display().to_string(), channel::read(path)?),
        };
        let (state, fingerprint) = read;
        if fingerprint != awaited.cpr.channel {
            return Err(LoadError::OtherState(name));
        }
        let machine = |source| LoadError::Machine { path: name.clone(), source };
        let state = self.machine.examine(state).map_err(machine)?;
        fail_point!(Read);
        // Until here another file can be tried.
        let AwaitedState { cpr, host, mut phases, way_back, carried } =
            self.awaited.take().ok_or(LoadError::NotAwaited)?;
        phases.done(&"read");
        // Before what can fail: then it ends.
        let helper = cpr.helper.and_then(AdoptedHelper::adopt);
        let mut before = |step| {
            if step == FIRST_WITH_STATE {
                phases.stamp("created");
            }
        };
        self.machine.restore(host, state, &mut before).map_err(machine)?;
        phases.done(&"build");
        if !planted!(ForgetEvents) {
            self.machine.put_back_events(cpr.pending_events);
        }
        let runs = cpr.run_state.is_running() || planted!(AlwaysResume);
        fail_point!(Commit);
        // From here on nothing returns to the old binary.
        let committed = way_back.armed.commit();
        // Only a rescue that came too early could have it; the guest is worth more than a lock.
        if let Err(error) = self.machine.ram().claim() {
            tracing::error!(%error, "cpr_ram_not_claimed");
        }
        self.machine.connect_irqfd();
        if runs {
            self.machine.resume();
        } else {
            self.machine.set_run_state(cpr.run_state);
        }
        phases.done(&"resume");
        let downtime_ns = monotonic_ns().saturating_sub(cpr.migration.paused_ns);
        phases.end();
        drop(committed);
        let Carried { memfd, unused, .. } = carried;
        if planted!(KeepStateFd) {
            std::mem::forget(memfd);
        }
        if planted!(StaleVm) {
            std::mem::forget(unused);
        }
        #[cfg(feature = "failpoints")]
        crate::failpoints::relieve();
        self.own_files();
        tracing::info!(run_state = ?cpr.run_state, downtime_us = downtime_ns / 1000, phases = phases.since(cpr.migration.paused_ns), "cpr_state_load");
        if let Some(helper) = &helper {
            helper.release();
        }
        if let Some(why) = way_back.returned {
            // Seldom enough to wait for its end: what is told then leaves nothing open.
            drop(helper);
            self.parameters = cpr.parameters;
            self.tell_failure(&why, runs);
            return Ok(());
        }
        if planted!(EarlyCompleted) {
            let status = MigrationStatus::Completed;
            self.qmp.broadcast(&EventKind::Migration { status }.now());
        }
        if runs {
            self.qmp.broadcast(&EventKind::Resume.now());
        }
        if runs && planted!(DoubleResume) {
            self.qmp.broadcast(&EventKind::Resume.now());
        }
        let waits = helper.is_some();
        let began_ns = cpr.migration.began_ns;
        self.finishing =
            Some(Finishing { helper, began_ns, downtime_ns: runs.then_some(downtime_ns) });
        if !waits {
            self.finish_update();
        }
        Ok(())
    }

    /// Nobody returns to these paths any more: they go with this process.
    pub(super) fn own_files(&mut self) {
        if planted!(StaleSocket) {
            return;
        }
        self.qmp.own_socket_file();
        if let Some(bus) = self.machine.bus() {
            bus.serial().host_mut().own_socket_file();
        }
        if let Some(awaited) = &mut self.awaited {
            awaited.host.own_socket_file();
        }
        if let Some(pid_file) = &mut self.pid_file {
            pid_file.own();
        }
    }

    /// Waits for `migrate-incoming`, as long as it takes.
    pub(super) fn await_state(&mut self) -> Result<(), LoadError> {
        match &mut self.awaited {
            Some(awaited) => Ok(awaited.way_back.armed.set_deadline(None)?),
            None => Err(LoadError::NotAwaited),
        }
    }

    /// The new binary gave the VM back because of `why`.
    fn tell_failure(&mut self, why: &str, runs: bool) {
        let command = self.parameters.cpr_exec_command.iter().flatten().next();
        let command = command.map_or("", String::as_str);
        let error = format!(
            "cpr-exec-command \"{command}\" was executed and could not take over, this VMM goes on: {why}"
        );
        self.qmp.refuse_in_flight(&QmpError::generic(&error));
        if let Some(event) = self.migration.fail(error) {
            self.qmp.broadcast(&event);
        }
        if runs {
            self.qmp.broadcast(&EventKind::Resume.now());
        }
    }

    /// While a state is awaited clients come, ask and go: an old binary that is returned to must
    /// find them as they are then, not as they were at exec.
    pub(super) fn checkpoint(&mut self) {
        let now = match &self.awaited {
            Some(_) => self.qmp.save(),
            None => return,
        };
        let fds = self.qmp.named_fds();
        let Some(awaited) = self.awaited.as_mut().filter(|awaited| awaited.cpr.qmp != now) else {
            return;
        };
        awaited.cpr.qmp = now;
        let record = &mut awaited.way_back.record;
        record.fds.retain(|named| !named.name.starts_with(crate::qmp::FD_PREFIX));
        record.fds.extend(fds.into_iter().map(|(name, fd)| NamedFd::new(name, 0, fd)));
        if let Err(error) = rewrite(awaited) {
            tracing::error!(%error, "cpr_checkpoint_failed: a return to the old binary would find QMP as it was before");
        }
    }

    /// True until a state has been loaded.
    pub(super) fn awaits_state(&self) -> bool {
        self.machine.run_state() == RunState::Inmigrate
    }
}

/// Puts the CPR state as it is now in the place of the one that crossed exec.
fn rewrite(awaited: &mut AwaitedState) -> Result<(), CheckpointError> {
    let AwaitedState { cpr, way_back, carried, .. } = awaited;
    let sealed = StateFd::create()?.write(&way_back.record, cpr)?;
    nix::unistd::dup3(sealed.as_fd(), &mut carried.memfd, nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(CheckpointError::Replace)?;
    let of_qmp = |named: &&NamedFd| named.name.starts_with(crate::qmp::FD_PREFIX);
    let live = way_back.record.fds.iter().filter(of_qmp).map(|named| named.fd);
    let live: Vec<_> = live.chain([way_back.record.state]).collect();
    Ok(way_back.armed.update(&way_back.record, &live)?)
}
