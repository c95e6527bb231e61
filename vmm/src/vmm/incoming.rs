//! The new binary's side of an update: loads the state, resumes the guest and reports.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cpr_qmp::event::Continued;
use cpr_qmp::event::EventKind;
use cpr_qmp::message::QmpError;
use cpr_qmp::migration::MigrationParameters;

use super::{Finishing, Vmm, protected};
use crate::config::KeeperPolicy;
use crate::devices::serial::SerialHost;
use crate::keeper::commit::{Claim, CommitPage, TakeOver};
use crate::keeper::{AdoptedKeeper, Watch};
use crate::machine::order::FIRST_WITH_STATE;
use crate::machine::salvaged::{Salvaged, SalvagedError};
use crate::machine::{MachineError, RestoredState};
use crate::migration::channel::{self, ChannelError};
use crate::migration::cpr::deadlines;
use crate::migration::cpr::fall_back::{self, ArmError, Record};
use crate::migration::cpr::monotonic::monotonic_ns;
use crate::migration::cpr::named_fds::NamedFd;
use crate::migration::cpr::phases::Phases;
use crate::migration::cpr::safeguard::Predecessor;
use crate::migration::cpr::state::{CprState, StateFd, WriteError};
use crate::migration::cpr::take_over::Fallback;
use crate::migration::status::Blackout;
use crate::pid_file::PidFile;
use crate::vcpu::GuestEvent;
use crate::vcpu::raw::LostWrite;
use crate::{logging, service_manager};

/// Everything that an update hands over, except the saved state.
pub struct AwaitedState {
    /// The CPR state from the old binary.
    pub cpr: CprState,
    /// The serial port's host side, for the machine to be restored.
    pub host: SerialHost,
    /// Timestamps of the phases so far.
    pub phases: Phases,
    /// How to fall back to the old binary.
    pub fallback: Fallback,
    /// Descriptors that only a fallback needs.
    pub carried: FallbackFds,
}

/// Descriptors that stay open until the guest runs.
pub struct FallbackFds {
    /// The CPR state.
    pub memfd: OwnedFd,
    /// The copy of the saved state.
    pub saved: Option<File>,
    /// The old binary.
    pub _binary: Option<OwnedFd>,
    /// The page with the commit point.
    pub page: Option<Arc<CommitPage>>,
    /// The keeper's timer.
    pub timer: Option<Watch>,
    /// State that was saved without its process.
    pub dump: Option<File>,
    /// Descriptors that the new command line does not use; their numbers must not be reused.
    pub _unused: Vec<OwnedFd>,
}

impl FallbackFds {
    fn watch(&self, after: Option<Duration>) {
        if let Some(timer) = &self.timer
            && let Err(errno) = timer.set(after)
        {
            tracing::warn!(%errno, "cpr_keeper_deadline");
        }
    }
}

/// Where to read the saved state from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The migration channel's file.
    File(&'a Path),
    /// The copy that was handed over across exec, for an old binary after a fallback.
    Copy,
}

/// A saved state, as read.
#[derive(Default)]
struct Loaded {
    name: String,
    /// The machine's state; absent if the machine was about to be reset.
    state: Option<RestoredState>,
    lost_writes: Vec<(u8, LostWrite)>,
    events: Vec<GuestEvent>,
    stop_reported: bool,
    serial_went: (u64, Vec<u8>),
    since_ns: u64,
}

/// Errors from loading a saved state.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A fail point was hit.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// No state is awaited.
    #[error("no incoming migration is expected: the VMM was not started with --incoming defer")]
    NotAwaited,
    /// The migration channel failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The old binary handed over no copy of the state.
    #[error("no copy of the saved state was handed over across exec")]
    NoCopy,
    /// The fallback could not be armed.
    #[error(transparent)]
    Arm(#[from] ArmError),
    /// A state that was saved without its process is invalid.
    #[error(transparent)]
    Salvaged(#[from] SalvagedError),
    /// A state that was saved without its process could not be read.
    #[error("cannot read the state that was saved without its process: {0}")]
    Dump(std::io::Error),
    /// The state is valid, but belongs to another update.
    #[error("file:{0} holds a state that this update did not write")]
    OtherState(String),
    /// The machine could not be restored.
    #[error("cannot load file:{path}: {source}")]
    Machine {
        /// The file.
        path: String,
        /// Why.
        source: MachineError,
    },
}

/// Reasons why the fallback could not be brought up to date.
#[derive(Debug, thiserror::Error)]
enum CheckpointError {
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Arm(#[from] ArmError),
    #[error("dup3: {0}")]
    Replace(nix::errno::Errno),
}

/// How long the main thread yields to vCPUs that were just resumed: on a host with few CPUs, its
/// remaining work would take time from them.
const RESUME_YIELD: Duration = Duration::from_millis(1);

impl Vmm {
    /// Loads the state and restores the run state.
    pub(super) fn load(&mut self, source: Source<'_>) -> Result<(), LoadError> {
        let awaited = self.awaited.as_mut().ok_or(LoadError::NotAwaited)?;
        let deadline = awaited.fallback.record.time_left();
        if awaited.fallback.returned.is_none() {
            awaited.carried.watch(Some(deadline + deadlines::GRACE));
            awaited.fallback.armed.set_deadline(Some(deadline))?;
        }
        let loaded = self.read(source)?;
        fail_point!(Read);
        // Up to here, another file can be tried after a failure.
        let AwaitedState { cpr, host, mut phases, fallback, carried } =
            self.awaited.take().ok_or(LoadError::NotAwaited)?;
        phases.done(&"read");
        let mut before = |step| {
            if step == FIRST_WITH_STATE {
                phases.stamp("created");
            }
        };
        let machine = |source| LoadError::Machine { path: loaded.name.clone(), source };
        match loaded.state {
            Some(state) => self.machine.restore(host, state, &mut before).map_err(machine)?,
            // The machine was about to be reset.
            None => self.machine.boot(host).map_err(machine)?,
        }
        self.machine.msrs_were_chosen_from(cpr.msr_choice);
        phases.done(&"build");
        let mut events = cpr.pending_events;
        let known = |event: &GuestEvent| events.iter().any(|known| known.vcpu == event.vcpu);
        let unknown: Vec<_> = loaded.events.into_iter().filter(|e| !known(e)).collect();
        events.extend(unknown);
        self.machine.put_back_events(events);
        self.machine.apply_traffic(&loaded.lost_writes, &loaded.serial_went);
        let runs = cpr.run_state.is_running();
        let stop_reported = if cpr.live.is_some() { loaded.stop_reported } else { runs };
        self.parameters_of_return(&fallback, &cpr.parameters);
        self.run_state_to_be = Some(cpr.run_state);
        // A keeper that continues the guest made the claim before it executed this binary.
        let page = carried.page.as_deref().filter(|_| fallback.former.is_none());
        page.inspect(|page| page.end_if_lost());
        self.guard_before_commit(page, &fallback.record, stop_reported);
        // State salvaged from a process that died may be of any later moment.
        if cpr.live.is_none() {
            audit_point!(self.machine, New);
        }
        fail_point!(Commit);
        // From here on, there is no fallback to the old binary.
        let committed = fallback.armed.commit();
        if let Some(page) = page {
            page.claim_or_end(Claim::Vmm);
        }
        // Only a rescue that came too early could hold the lock; the guest matters more.
        if let Err(error) = self.machine.ram().claim() {
            tracing::error!(%error, "cpr_ram_not_claimed");
        }
        self.machine.connect_irqfd();
        if runs {
            self.machine.resume();
        } else {
            self.machine.set_run_state(cpr.run_state);
        }
        self.run_state_to_be = None;
        phases.done(&"resume");
        let paused_ns = cpr.migration.paused_ns.max(loaded.since_ns);
        let downtime_ns = monotonic_ns().saturating_sub(paused_ns);
        if runs {
            std::thread::sleep(RESUME_YIELD);
        }
        phases.end();
        drop(committed);
        let keeper = fallback.former.map_or(cpr.helper, |_| None).and_then(AdoptedKeeper::adopt);
        #[cfg(feature = "failpoints")]
        {
            crate::failpoints::relieve();
            use crate::migration::cpr::variables::STATE;
            crate::failpoints::seam::taken_over(STATE, carried.memfd.as_fd());
        }
        self.own_files();
        tracing::info!(run_state = ?cpr.run_state, downtime_us = downtime_ns / 1000, phases = phases.since(paused_ns), "cpr_state_load");
        if let Some(keeper) = &keeper {
            keeper.release();
            // A keeper that this process may not kill, because it runs as another user by now,
            // wakes up by this timer and ends by itself.
            carried.timer.into_iter().for_each(|timer| {
                let _ = timer.set(Some(Duration::ZERO));
            });
        }
        if let Some(why) = fallback.returned {
            // Rare enough to wait for the keeper's end: nothing is left when clients are told.
            drop(keeper);
            let updating = cpr.live.is_none_or(|live| live.updating);
            let resumed = stop_reported && runs;
            self.report_fallback(&why, fallback.former, updating, resumed);
            return Ok(());
        }
        if runs {
            self.qmp.broadcast(&EventKind::Resume.now());
        }
        if let Some(safeguard) = &self.safeguard {
            safeguard.set_told_stopped(false);
        }
        let waits = keeper.is_some();
        let began_ns = cpr.migration.began_ns;
        if runs {
            let rehearsal = cpr.migration.rehearsal_ns.map(Duration::from_nanos);
            let downtime = Duration::from_nanos(downtime_ns);
            self.migration.set_last_blackout(Some(Blackout { downtime, rehearsal }));
        }
        self.finishing =
            Some(Finishing { keeper, began_ns, downtime_ns: runs.then_some(downtime_ns) });
        if !waits {
            self.finish_update();
        }
        Ok(())
    }

    fn read(&self, source: Source<'_>) -> Result<Loaded, LoadError> {
        let awaited = self.awaited.as_ref().ok_or(LoadError::NotAwaited)?;
        let (name, read) = match (source, &awaited.carried.saved) {
            (Source::Copy, Some(copy)) => {
                let name = "the copy that crossed exec".to_owned();
                let read = channel::read_open(copy, Path::new(&name))?;
                (name, read)
            }
            (Source::Copy, None) if awaited.cpr.live.is_none() => return Err(LoadError::NoCopy),
            (Source::Copy, None) => return self.read_salvaged(awaited.carried.dump.as_ref()),
            (Source::File(path), _) => (path.display().to_string(), channel::read(path)?),
        };
        let (state, fingerprint) = read;
        if fingerprint != awaited.cpr.channel {
            return Err(LoadError::OtherState(name));
        }
        let machine = |source| LoadError::Machine { path: name.clone(), source };
        let state = Some(self.machine.examine(state).map_err(machine)?);
        Ok(Loaded { name, state, ..Loaded::default() })
    }

    fn read_salvaged(&self, dump: Option<&File>) -> Result<Loaded, LoadError> {
        let name = "the state that was saved without its process".to_owned();
        let mut bytes = Vec::new();
        if let Some(dump) = dump {
            bytes.resize(dump.metadata().map_err(LoadError::Dump)?.len() as usize, 0);
            dump.read_exact_at(&mut bytes, 0).map_err(LoadError::Dump)?;
        }
        if bytes.is_empty() {
            return Ok(Loaded { name, ..Loaded::default() });
        }
        let Salvaged { state, lost_writes, events, stop_reported, serial_went, since_ns } =
            self.machine.read_salvaged(&bytes)?;
        let state = Some(state);
        Ok(Loaded { name, state, lost_writes, events, stop_reported, serial_went, since_ns })
    }

    fn parameters_of_return(&mut self, fallback: &Fallback, parameters: &MigrationParameters) {
        if fallback.returned.is_some() {
            self.parameters = parameters.clone();
        }
    }

    /// Starts this process's own keeper before it takes over the guest.
    /// It has been taken over already if there is no `page`.
    fn guard_before_commit(
        &mut self,
        page: Option<&CommitPage>,
        record: &Record,
        stop_reported: bool,
    ) {
        if self.config.keeper == KeeperPolicy::Off {
            return;
        }
        let take_over = page.map(|page| TakeOver::in_place(page.point().clone()));
        if let Err(error) = self.guard(Some(Predecessor { record: Some(record), take_over })) {
            tracing::warn!(%error, "cpr_keeper_missing");
        }
        if let Some(safeguard) = &self.safeguard {
            safeguard.set_told_stopped(stop_reported);
        }
    }

    /// Takes ownership of the socket and PID files: no fallback needs them any more, so they are
    /// removed when this process exits.
    pub(super) fn own_files(&mut self) {
        // No seam: who removes the file is decided here, and nothing later can tell.
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

    /// Waits for `migrate-incoming` without a deadline.
    pub(super) fn await_state(&mut self) -> Result<(), LoadError> {
        match &mut self.awaited {
            Some(awaited) => {
                let Fallback { record, returned, .. } = &awaited.fallback;
                let left = record.downtime_left().filter(|_| returned.is_none());
                awaited.carried.watch(left.map(|left| left + deadlines::GRACE));
                Ok(awaited.fallback.armed.set_deadline(left)?)
            }
            None => Err(LoadError::NotAwaited),
        }
    }

    /// Reports that this process continues the guest because of `why`, after a failed update or
    /// outside of one; in place of process `former`, if given.
    fn report_fallback(&mut self, why: &str, former: Option<i32>, updating: bool, resumed: bool) {
        let command = self.parameters.cpr_exec_command.iter().flatten().next();
        let command = command.map_or("", String::as_str);
        let error = match (former, why.strip_prefix(fall_back::CRASHED)) {
            (Some(former), why_crashed) => {
                self.report_continued(former, why_crashed.unwrap_or(why))
            }
            (None, Some(why)) => protected::crashed(why),
            (None, None) => format!(
                "cpr-exec-command \"{command}\" failed to take over; rolled back to the old VMM: \
                 {why}"
            ),
        };
        self.qmp.refuse_in_flight(&QmpError::generic(&error));
        let failed = updating.then(|| self.migration.fail(error)).flatten();
        let resumed = resumed.then(|| EventKind::Resume.now());
        failed.into_iter().chain(resumed).for_each(|event| self.qmp.broadcast(&event));
        self.conclude();
    }

    /// Reports to stderr, the log, the PID file, the service manager and all clients that this
    /// process continues the guest of another one. Returns the report.
    fn report_continued(&mut self, former: i32, why: &str) -> String {
        let pid = std::process::id() as i32;
        let text = format!("process {former} ended ({why}): the VM continues in process {pid}");
        logging::notice(&text);
        // Dropped first: dropping it later would remove the file that is written now.
        let path = self.pid_file.take().and_then(|file| file.path());
        if let Some(path) = &path {
            match PidFile::write(path) {
                Ok(written) => self.pid_file = Some(written),
                Err(error) => logging::notice(&error),
            }
        }
        if let Err(error) = service_manager::tell_main_pid() {
            tracing::warn!(%error, "service_manager_not_told");
        }
        let reason = why.to_owned();
        self.qmp.broadcast(&Continued { pid, former_pid: former, reason }.now());
        text
    }

    /// While a state is awaited, clients connect, send commands and disconnect: after a fallback,
    /// the old binary must find them as they are then, not as they were at exec.
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
        let record = &mut awaited.fallback.record;
        record.fds.retain(|named| !named.name.starts_with(crate::qmp::FD_PREFIX));
        record.fds.extend(fds.into_iter().map(|(name, fd)| NamedFd::new(name, 0, fd)));
        if let Err(error) = rewrite(awaited) {
            tracing::error!(%error, "cpr_checkpoint_failed: a fallback would restore a stale state of QMP");
        }
    }
}

/// Replaces the CPR state that was handed over by the current one.
fn rewrite(awaited: &mut AwaitedState) -> Result<(), CheckpointError> {
    let AwaitedState { cpr, fallback, carried, .. } = awaited;
    let sealed = StateFd::create()?.write(&fallback.record, cpr)?;
    nix::unistd::dup3(sealed.as_fd(), &mut carried.memfd, nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(CheckpointError::Replace)?;
    let of_qmp = |named: &&NamedFd| named.name.starts_with(crate::qmp::FD_PREFIX);
    let live = fallback.record.fds.iter().filter(of_qmp).map(|named| named.fd);
    let live: Vec<_> = live.chain([fallback.record.state]).collect();
    Ok(fallback.armed.update(&fallback.record, &live)?)
}
