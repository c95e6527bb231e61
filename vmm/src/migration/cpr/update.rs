//! The old process's side of an update: check, pause, save, publish, exec.
//!
//! Each step returns a guard whose `Drop` undoes it, so a failure anywhere unwinds them in reverse
//! order: no separate rollback code can miss a step. `exec` consumes the last guards and returns
//! only an error.

use std::convert::Infallible;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cpr_qmp::address::MigrationAddress;
use cpr_qmp::event::EventKind;
use cpr_qmp::message::Event;
use cpr_qmp::migration::{MigMode, MigrationParameters, MigrationStatus};
use cpr_qmp::run_state::RunState;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::command::{CommandError, ExecCommand, ExecError};
use super::fall_back::{self, Record};
use super::headroom::{self, NoRoom};
use super::held_signals::HeldSignals;
use super::named_fds::{NamedFd, OutgoingFds};
use super::phases::Phases;
use super::publish::{PublishError, Published};
use super::safeguard::{Safeguard, SafeguardError, View, named_signals};
use super::state::{
    CprState, ENV_NAME, MigrationRecord, SavedStateFd, SealedFd, StateFd, WriteError, monotonic_ns,
};
use crate::config::Switch;
use crate::logging::LOG_FD;
use crate::machine::{Machine, MachineError};
use crate::migration::blockers::blocked_reasons;
use crate::migration::channel::{self, ChannelError, OutgoingFile};
use crate::migration::status::Migration;
use crate::own_binary;
use crate::private_file::Retraction;
use crate::qmp::Server;
use crate::state::Fingerprint;
use crate::unix_listener::ListenerState;

/// The names of the two ends of the socket pair that reports signals.
pub const SIGNALS_FDS: [&str; 2] = ["signals.reader", "signals.writer"];
/// The name of KVM's descriptor, which is bound to no address space: a VMM that receives it need
/// not open `/dev/kvm` again.
pub const KVM_FD: &str = "kvm";
/// The name of the old binary's descriptor.
pub const BINARY_FD: &str = "fall-back.binary";
/// The name of the copy of the saved state.
pub const SAVED_FD: &str = "fall-back.state";
/// The name of the memfd for a state that is saved without its process.
pub const DUMP_FD: &str = "keeper.state";
/// The name of the memfd for traffic on QMP's sockets that the published state does not include.
pub const TRAFFIC_FD: &str = "keeper.traffic";
/// The default deadline of the new binary.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
/// How long a process that has passed its deadline has to end or to fall back by itself.
pub const GRACE: Duration = Duration::from_secs(2);
/// The deadline of an old binary after a fallback: longer than it ever takes.
pub const WAY_BACK: Duration = Duration::from_secs(60);
/// Maximum number of descriptors that are handed over besides those of QMP.
const MACHINE_FDS: usize = 17;

/// Errors that refuse an update. The guest is not affected.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A fail point fired.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// An update is already under way.
    #[error("There's a migration process in progress")]
    UnderWay,
    /// A thread is saving memory, and would not survive the exec.
    #[error("cannot update: guest memory is being saved (pmemsave); retry when it is done")]
    Dump,
    /// The migration mode is not supported.
    #[error("migration mode {0} is not supported yet: set mode to cpr-exec")]
    Mode(&'static str),
    /// The guest has not been loaded yet.
    #[error("Guest is waiting for an incoming migration")]
    Incoming,
    /// The guest cannot continue in this run state.
    #[error("cannot update the machine in run state {0:?}")]
    RunState(RunState),
    /// The command is invalid.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The channel cannot be used.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A blocker is in effect.
    #[error("the update is blocked: {0}")]
    Blocked(String),
    /// A resource is too small.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// A memfd cannot be created.
    #[error(transparent)]
    State(#[from] WriteError),
    /// This binary cannot be opened, so there is no fallback.
    #[error("cannot open the binary of this process for a fallback: {0}")]
    Binary(io::Error),
}

/// Errors of an update after it had begun. The guest is again as it was before.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// A fail point fired.
    #[cfg(feature = "failpoints")]
    #[error(transparent)]
    Injected(#[from] crate::failpoints::Injected),
    /// The machine could not be paused or saved.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The state cannot be written to the channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The CPR state cannot be written.
    #[error(transparent)]
    State(#[from] WriteError),
    /// The descriptors cannot be published.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// A termination signal arrived.
    #[error("the VMM received a termination signal")]
    AskedToEnd,
    /// The command cannot be executed.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// A checked update, with everything created that can be created while the guest runs.
#[derive(Debug)]
pub struct Plan {
    command: ExecCommand,
    channel: OutgoingFile,
    state_fd: StateFd,
    saved_fd: SavedStateFd,
    binary: OwnedFd,
    record: Record,
    began_ns: u64,
    /// Whether the command is known to be a VMM that unblocks the signals blocked for it.
    rehearsed: bool,
    /// Whether the command passes the commit point; true as well if that is unknown.
    commits: bool,
}

/// Returns how long the new binary may take.
pub fn deadline(parameters: &MigrationParameters) -> Duration {
    parameters.x_cpr_exec_deadline.map_or(DEFAULT_DEADLINE, Duration::from_millis)
}

/// Minimum deadline of each process, in milliseconds: a busy host uses up some of it.
const LEAST_DEADLINE_MS: u64 = 100;

/// The error of a deadline that no update can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot set x-cpr-exec-deadline to {0} ms: no update is that fast; use {LEAST_DEADLINE_MS} ms \
     or more"
)]
pub struct DeadlineTooShort(u64);

/// Checks that the deadline in `parameters`, if there is one, can be met.
pub fn check_deadline(parameters: &MigrationParameters) -> Result<(), DeadlineTooShort> {
    match parameters.x_cpr_exec_deadline {
        Some(deadline) if deadline < LEAST_DEADLINE_MS => Err(DeadlineTooShort(deadline)),
        _ => Ok(()),
    }
}

/// Checks everything that can be checked before the guest stops.
pub fn check(
    parameters: &MigrationParameters,
    address: &MigrationAddress,
    machine: &Machine,
    qmp: &Server,
    migration: &Migration,
    follow_symlinks: Switch,
) -> Result<Plan, Refused> {
    let began_ns = monotonic_ns();
    if migration.under_way() {
        return Err(Refused::UnderWay);
    }
    check_run_state(machine)?;
    match parameters.mode.unwrap_or_default() {
        MigMode::CprExec => {}
        MigMode::Normal => return Err(Refused::Mode("normal")),
        MigMode::CprReboot => return Err(Refused::Mode("cpr-reboot")),
        MigMode::CprTransfer => return Err(Refused::Mode("cpr-transfer")),
    }
    let command = ExecCommand::prepare(parameters.cpr_exec_command.as_deref())?;
    let path = channel::file_path(address)?;
    if let Some(reason) = blocked_reasons(machine.ram()).into_iter().next() {
        return Err(Refused::Blocked(reason));
    }
    headroom::address_space(machine.config().cpus.into())?;
    headroom::descriptors(MACHINE_FDS + qmp.named_fds().len())?;
    let (state_fd, saved_fd) = (StateFd::create()?, SavedStateFd::create()?);
    let binary = own_binary::open().map_err(Refused::Binary)?;
    let record = Record::prepare(deadline(parameters));
    fail_point!(Check);
    let channel = OutgoingFile::open(path, follow_symlinks)?;
    tracing::info!(command = command.name(), "cpr_check");
    Ok(Plan {
        command,
        channel,
        state_fd,
        saved_fd,
        binary,
        record,
        began_ns,
        rehearsed: false,
        commits: true,
    })
}

/// Checks that the guest is in a state in which it can be updated.
pub fn check_run_state(machine: &Machine) -> Result<(), Refused> {
    match machine.run_state() {
        RunState::Inmigrate => Err(Refused::Incoming),
        state @ (RunState::InternalError | RunState::Shutdown) => Err(Refused::RunState(state)),
        _ => Ok(()),
    }
}

impl Plan {
    /// Returns the command to execute.
    pub fn command(&self) -> &ExecCommand {
        &self.command
    }

    /// Marks the command as rehearsed; `commits`: it passes the commit point.
    pub fn rehearsed(self, commits: bool) -> Self {
        Self { rehearsed: true, commits, ..self }
    }

    /// Returns the deadline, which applies to the old process too.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.record.deadline_ms)
    }

    /// Returns the descriptors that the plan has opened.
    pub fn fds(&self) -> [RawFd; 5] {
        let [channel, directory] = self.channel.fds();
        [
            channel,
            directory,
            self.state_fd.as_raw_fd(),
            self.saved_fd.as_raw_fd(),
            self.binary.as_raw_fd(),
        ]
    }

    /// Returns the descriptors of this process that are not closed on exec.
    pub fn inherited(&self) -> &[RawFd] {
        &self.record.inherited
    }

    /// Returns the path that the state is written to.
    pub fn channel(&self) -> &Path {
        self.channel.path()
    }

    /// Returns the [`Retraction`], which leaves no state there.
    pub fn retraction(&self) -> &Retraction {
        self.channel.retraction()
    }
}

/// The parts of the VMM that an update uses.
pub struct Walk<'a> {
    /// The machine.
    pub machine: &'a mut Machine,
    /// The QMP server.
    pub qmp: &'a mut Server,
    /// The migration's status.
    pub migration: &'a mut Migration,
    /// The log file, if there is one.
    pub log: Option<&'a std::fs::File>,
    /// The end that becomes readable when a termination signal arrives, and the end that is written
    /// to. Nothing is read from it here.
    pub signals: [BorrowedFd<'a>; 2],
    /// The parameters, for a fallback to this binary.
    pub parameters: &'a MigrationParameters,
    /// The PID file.
    pub pid_file: Option<PathBuf>,
    /// What continues the guest if this process fails.
    pub safeguard: &'a mut Safeguard,
    /// Set to whether clients were told that the guest has stopped.
    pub stopped: &'a mut bool,
}

impl Walk<'_> {
    /// Carries out `plan`. Returns only if it failed, with everything undone; the failure has not
    /// been reported yet.
    pub fn update(&mut self, plan: Plan) -> UpdateError {
        let setup = self.migration.begin();
        self.tell(setup);
        if let Err(error) = self.publish() {
            tracing::warn!(%error, "cpr_safeguard_stale");
        }
        self.qmp.flush_published();
        let Err(error) = self.attempt(plan);
        error
    }

    /// Publishes that the update has begun, for a process that continues the guest in place of this
    /// one.
    fn publish(&mut self) -> Result<(), SafeguardError> {
        let view = View {
            machine: self.machine,
            run_state: self.machine.run_state(),
            qmp: self.qmp,
            migration: self.migration,
            parameters: self.parameters,
            pid_file: self.pid_file.clone(),
            log: self.log,
            signals: self.signals,
        };
        let generation = self.safeguard.publish(&view)?;
        generation.into_iter().for_each(|generation| self.qmp.hold(Some(generation)));
        Ok(())
    }

    fn tell(&mut self, event: Option<Event>) {
        if let Some(event) = event {
            self.qmp.broadcast(&event);
        }
    }

    fn attempt(&mut self, plan: Plan) -> Result<Infallible, UpdateError> {
        let Plan { rehearsed, commits, began_ns, .. } = plan;
        let Plan { command, channel, state_fd, saved_fd, binary, mut record, .. } = plan;
        fail_point!(Helper);
        let record_deadline = Duration::from_millis(record.deadline_ms);
        let _watched = Watched::watch(self.safeguard, record_deadline);
        let _retracted = fall_back::retracted(channel.retraction().clone());
        channel.make_way()?;
        fail_point!(Pause);
        let (pausing_ns, mut phases) = (monotonic_ns(), Phases::outgoing());
        let paused = Paused::pause(self.machine)?;
        let paused_ns = monotonic_ns();
        if paused.before.is_running() {
            if !planted!(NoStopEvent) {
                self.qmp.broadcast(&EventKind::Stop.now());
            }
            *self.stopped = true;
        }
        fail_point!(Paused);
        for status in [MigrationStatus::Active, MigrationStatus::Device] {
            if let Some(event) = self.migration.advance(status) {
                self.qmp.broadcast(&event);
            }
        }
        let saved = Saved::save(&paused, channel, saved_fd)?;
        phases.stamp("save");
        audit_point!(paused, Old);
        self.safeguard.set_told_stopped(*self.stopped);
        self.qmp.flush_published();
        let serial = SerialHandOver::of(&paused);
        let view = View {
            machine: &paused,
            run_state: paused.before,
            qmp: self.qmp,
            migration: self.migration,
            parameters: self.parameters,
            pid_file: None,
            log: self.log,
            signals: self.signals,
        };
        let mut fds = outgoing_fds(&view, &serial);
        self.safeguard.hand_over(&mut fds);
        fds.add(BINARY_FD, 0, binary.as_fd());
        fds.add(SAVED_FD, 0, saved.copy.as_fd());
        record.fds = fds.list();
        record.helper = self.safeguard.keeper_pid();
        (record.binary, record.state) = (binary.as_raw_fd(), state_fd.as_raw_fd());
        let state = CprState {
            run_state: paused.before,
            ram_blocks: vec![paused.ram().info()],
            channel: saved.fingerprint,
            qmp: self.qmp.save(),
            serial_listener: serial.listener.clone(),
            pending_events: paused.unhandled_events(),
            helper: Some(record.helper).filter(|keeper| *keeper != 0),
            migration: MigrationRecord { events: self.migration.events(), began_ns, paused_ns },
            pid_file: self.pid_file.clone().map(|path| path.into_os_string().into_vec().into()),
            parameters: self.parameters.clone(),
            msr_choice: paused.msr_choice(),
            live: None,
        };
        fail_point!(State);
        let sealed = state_fd.write(&record, &state)?;
        let _saved = self.safeguard.saved(&record);
        tracing::info!(fds = record.fds.len(), "cpr_state_save");
        fail_point!(Publish);
        if planted!(LeakFd) {
            std::mem::forget(binary.try_clone());
        }
        let published = Published::new(fds, sealed)?;
        fail_point!(Exec);
        let _held = rehearsed.then(HeldSignals::hold);
        if !commits {
            // No process could tell whether it has run the guest.
            self.safeguard.release_keeper();
        }
        // Last: the new process sees a later signal, by the same descriptor.
        if has_come(self.signals[0]) {
            return Err(UpdateError::AskedToEnd);
        }
        #[cfg(feature = "failpoints")]
        crate::failpoints::relieve();
        phases.stamp("publish");
        // The new binary gets the full deadline from here on.
        self.safeguard.expect_end_within(Some(record_deadline + GRACE));
        let pause_us = paused_ns.saturating_sub(pausing_ns) / 1000;
        tracing::info!(
            command = command.name(),
            pause_us,
            phases = phases.since(paused_ns),
            "cpr_exec"
        );
        Err(published.exec(&command).into())
    }
}

/// While this exists, the keeper replaces this process, or what it executes, some time after its
/// deadline.
struct Watched<'a>(&'a Safeguard);

impl<'a> Watched<'a> {
    fn watch(safeguard: &'a Safeguard, deadline: Duration) -> Self {
        safeguard.expect_end_within(Some(deadline + GRACE));
        Self(safeguard)
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.expect_end_within(None);
    }
}

/// Reports that an update failed; `stopped`: clients were told that the guest has stopped.
pub fn tell_failure(qmp: &mut Server, migration: &mut Migration, error: String, stopped: bool) {
    let failed = match planted!(FailureIsSuccess) {
        true => migration.complete(None),
        false => migration.fail(error),
    };
    let resumed = stopped.then(|| EventKind::Resume.now());
    failed.into_iter().chain(resumed).for_each(|event| qmp.broadcast(&event));
}

/// While this exists, no vCPU runs. Dropping it restores the machine's previous run state.
struct Paused<'a> {
    machine: &'a mut Machine,
    before: RunState,
}

impl<'a> Paused<'a> {
    fn pause(machine: &'a mut Machine) -> Result<Self, UpdateError> {
        let before = machine.run_state();
        if before.is_running() {
            machine.pause(RunState::FinishMigrate)?;
        } else {
            machine.set_run_state(RunState::FinishMigrate);
        }
        machine.collect_events();
        machine.disconnect_irqfd();
        Ok(Self { machine, before })
    }
}

impl Deref for Paused<'_> {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        self.machine
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.machine.connect_irqfd();
        if planted!(StayPaused) && self.before.is_running() {
            self.machine.set_run_state(RunState::Paused);
        } else if self.before.is_running() {
            self.machine.resume();
        } else {
            self.machine.set_run_state(self.before);
        }
    }
}

/// The channel holds the whole state, and a memfd a copy of it. Dropping it removes the state from
/// the channel.
struct Saved {
    fingerprint: Fingerprint,
    copy: SealedFd,
    _channel: OutgoingFile,
}

impl Saved {
    fn save(
        paused: &Paused<'_>,
        mut channel: OutgoingFile,
        copy: SavedStateFd,
    ) -> Result<Self, UpdateError> {
        fail_point!(Save);
        let (bytes, fingerprint) = paused.save()?.encode();
        fail_point!(Channel);
        channel.write(&bytes)?;
        fail_point!(Copy);
        Ok(Self { fingerprint, copy: copy.write(&bytes)?, _channel: channel })
    }
}

fn has_come(signals: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(signals, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// What the serial port hands over. Its lock is not held: a thread that crashes while holding it
/// would block the thread that falls back.
pub struct SerialHandOver {
    fds: Vec<(&'static str, RawFd)>,
    /// The port's listening socket.
    pub listener: Option<ListenerState>,
}

impl SerialHandOver {
    /// Collects what there is now.
    pub fn of(machine: &Machine) -> Self {
        let Some(bus) = machine.bus() else { return Self { fds: Vec::new(), listener: None } };
        let serial = bus.serial();
        let fds = serial.preserved_fds().into_iter().map(|(name, fd)| (name, fd.as_raw_fd()));
        Self { fds: fds.collect(), listener: serial.host().listener_state() }
    }
}

/// Returns what an update would hand over now, by number: the descriptors of the VMM, of `plan`, of
/// the `safeguard`, and the CPR state.
pub fn handed_over(plan: &Plan, view: &View<'_>, safeguard: Option<&Safeguard>) -> Vec<NamedFd> {
    let serial = SerialHandOver::of(view.machine);
    let mut fds = outgoing_fds(view, &serial);
    if let Some(safeguard) = safeguard {
        safeguard.hand_over(&mut fds);
    }
    let mut list = fds.list();
    for (name, fd) in [
        (BINARY_FD, plan.binary.as_raw_fd()),
        (SAVED_FD, plan.saved_fd.as_raw_fd()),
        (ENV_NAME, plan.state_fd.as_raw_fd()),
    ] {
        list.push(NamedFd { name: name.to_owned(), id: 0, fd });
    }
    list
}

/// Returns every descriptor of the VM, by name.
pub fn outgoing_fds<'a>(view: &View<'a>, serial: &SerialHandOver) -> OutgoingFds<'a> {
    let &View { machine, qmp, log, signals, .. } = view;
    let mut fds = OutgoingFds::default();
    for (name, fd) in named_signals(signals) {
        fds.add(name, 0, fd);
    }
    fds.add(KVM_FD, 0, machine.kvm_fd());
    #[cfg(feature = "failpoints")]
    if let Some(vm) = machine.vm_fd().filter(|_| planted!(StaleVm)) {
        fds.add("kvm.vm", 0, vm);
    }
    #[cfg(feature = "failpoints")]
    fds.add(crate::machine::irqfd::NAME, 0, machine.irqfd().fd());
    let ram = machine.ram();
    if let Some(fd) = ram.fd() {
        fds.add(format!("ram.{}", ram.name()), 0, fd);
    }
    if let Some(image) = machine.image() {
        fds.add("boot.kernel", 0, image.kernel_fd());
        if let Some(fd) = image.initrd_fd() {
            fds.add("boot.initrd", 0, fd);
        }
    }
    for &(name, fd) in &serial.fds {
        // SAFETY: the serial port closes its descriptors on this thread only, when it is serviced.
        fds.add(name, 0, unsafe { BorrowedFd::borrow_raw(fd) });
    }
    for (name, fd) in qmp.named_fds() {
        fds.add(name, 0, fd);
    }
    if let Some(log) = log {
        fds.add(LOG_FD, 0, log.as_fd());
    }
    fds
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::boot::{self, BootImage};
    use crate::config::{MemoryConfig, PageKind, SerialConfig};
    use crate::devices::serial::SerialHost;
    use crate::machine::MachineConfig;
    use crate::memory::RamBlock;

    fn machine(image: Option<BootImage>) -> Machine {
        let memory = MemoryConfig { size: 4 << 20, share: true, pages: PageKind::Small };
        let config = MachineConfig { memory, cpus: 1, cmdline: String::new(), test_device: false };
        Machine::new(config, RamBlock::create(memory).unwrap(), image, None).unwrap()
    }

    /// Runs an update that fails, and returns the events that a client sees.
    fn events(machine: &mut Machine, signals: BorrowedFd<'_>) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let mut qmp = Server::bind(&dir.path().join("qmp")).unwrap();
        let mut client = UnixStream::connect(dir.path().join("qmp")).unwrap();
        client.write_all(b"{\"execute\": \"qmp_capabilities\"}\n").unwrap();
        for _ in 0..2 {
            let tokens: Vec<_> = qmp.interests().map(|interest| interest.token).collect();
            tokens.into_iter().for_each(|token| qmp.ready(token, true, true));
            assert!(qmp.next_request().is_none());
        }
        let mut migration = Migration::default();
        migration.set_events(true);
        let plan = Plan {
            command: ExecCommand::prepare(Some(&["/nowhere".to_owned()])).unwrap(),
            channel: OutgoingFile::open(dir.path().join("state"), Switch::Off).unwrap(),
            state_fd: StateFd::create().unwrap(),
            saved_fd: SavedStateFd::create().unwrap(),
            binary: own_binary::open().unwrap(),
            record: Record::prepare(DEFAULT_DEADLINE),
            began_ns: 0,
            rehearsed: true,
            commits: true,
        };
        let (qmp_server, log) = (&mut qmp, None);
        let mut stopped = false;
        let error = Walk {
            machine,
            qmp: qmp_server,
            migration: &mut migration,
            log,
            signals: [signals, signals],
            parameters: &MigrationParameters::default(),
            pid_file: None,
            safeguard: &mut Safeguard::start(false, None).unwrap(),
            stopped: &mut stopped,
        }
        .update(plan);
        qmp.hold(None);
        tell_failure(&mut qmp, &mut migration, error.to_string(), stopped);
        drop(qmp);
        let seen = std::io::read_to_string(client).unwrap();
        let event = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let status = line["data"]["status"].as_str().map(str::to_owned);
            status.or_else(|| Some(line["event"].as_str()?.to_owned()))
        };
        let mut events: Vec<_> = seen.lines().filter_map(event).collect();
        events.extend(migration.info(Vec::new()).error_desc);
        events
    }

    #[test]
    fn termination_signal_fails_the_update_and_stays_readable() {
        let mut machine = machine(Some(boot::kernel(&[(1 << 20, 1, 1)])));
        let null = SerialHost::open(&SerialConfig::Null, None, &mut |_| None).unwrap();
        machine.boot(null).unwrap();
        let (signals, mut writer) = UnixStream::pair().unwrap();
        let tried = events(&mut machine, signals.as_fd());
        assert_eq!(tried[..4], ["setup", "active", "device", "failed"]);
        assert!(tried[4].contains("/nowhere"), "{tried:?}");
        writer.write_all(b"X").unwrap();
        let asked = events(&mut machine, signals.as_fd());
        assert_eq!(asked[4], UpdateError::AskedToEnd.to_string());
        assert!(has_come(signals.as_fd()));
    }

    #[test]
    fn failed_update_sends_ordered_and_paired_events() {
        // Never booted, so it cannot be saved.
        let mut machine = machine(None);
        let (signals, _writer) = UnixStream::pair().unwrap();
        let why = MachineError::NoKernel.to_string();
        let stopped = events(&mut machine, signals.as_fd());
        assert_eq!(stopped, ["setup", "active", "device", "failed", &why]);
        machine.resume();
        let running = events(&mut machine, signals.as_fd());
        assert_eq!(running, ["setup", "STOP", "active", "device", "failed", "RESUME", &why]);
    }
}
