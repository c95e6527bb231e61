//! The old process's side of an update: check, pause, save, publish, exec.
//!
//! Each step returns a guard whose `Drop` undoes it, so a failure anywhere unwinds them in reverse
//! order: there is no rollback to forget a line in. `exec` takes what is left and returns only an
//! error.

use std::convert::Infallible;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use cpr_qmp::address::MigrationAddress;
use cpr_qmp::event::EventKind;
use cpr_qmp::message::Event;
use cpr_qmp::migration::{MigMode, MigrationParameters, MigrationStatus};
use cpr_qmp::run_state::RunState;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::command::{CommandError, ExecCommand, ExecError};
use super::headroom::{self, NoRoom};
use super::helper::MmHelper;
use super::named_fds::OutgoingFds;
use super::publish::{PublishError, Published};
use super::state::{CprState, MigrationRecord, StateFd, WriteError, monotonic_ns};
use crate::devices::serial::SerialPort;
use crate::logging::LOG_FD;
use crate::machine::{Machine, MachineError};
use crate::migration::blockers::blocked_reasons;
use crate::migration::channel::{self, ChannelError, OutgoingFile};
use crate::migration::status::Migration;
use crate::qmp::Server;
use crate::state::Fingerprint;

/// The name of the descriptor that tells of signals.
pub const SIGNALS_FD: &str = "signals";

/// Why an update was refused. The guest has not noticed anything.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is one already.
    #[error("There's a migration process in progress")]
    UnderWay,
    /// Another mode.
    #[error("migration mode {0} is not supported yet: set mode to cpr-exec")]
    Mode(&'static str),
    /// The guest is not there yet.
    #[error("Guest is waiting for an incoming migration")]
    Incoming,
    /// There is no guest that could go on.
    #[error("the machine cannot be updated in run state {0:?}")]
    RunState(RunState),
    /// The command.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// A blocker.
    #[error("the update is blocked: {0}")]
    Blocked(String),
    /// The memory.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The memfd.
    #[error(transparent)]
    State(#[from] WriteError),
}

/// Why an update failed after it had begun. The guest is again as it was.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The machine could not be paused or saved.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The channel.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The CPR state.
    #[error(transparent)]
    State(#[from] WriteError),
    /// The descriptors.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// The user wants something else.
    #[error("the VMM was asked to end by a signal")]
    AskedToEnd,
    /// The command.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// An update that nothing stands in the way of, with everything made that can be made while the
/// guest runs.
#[derive(Debug)]
pub struct Plan {
    command: ExecCommand,
    channel: OutgoingFile,
    state_fd: StateFd,
    began_ns: u64,
}

/// Checks everything that can be checked before the guest stops.
pub fn check(
    parameters: &MigrationParameters,
    address: &MigrationAddress,
    machine: &Machine,
    migration: &Migration,
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
    headroom::check(machine.config().cpus.into())?;
    let state_fd = StateFd::create()?;
    // Last: it empties the file.
    let channel = OutgoingFile::open(path)?;
    tracing::info!(command = command.name(), "cpr_check");
    Ok(Plan { command, channel, state_fd, began_ns })
}

/// Whether the guest is in a state in which it can be updated.
pub fn check_run_state(machine: &Machine) -> Result<(), Refused> {
    match machine.run_state() {
        RunState::Inmigrate => Err(Refused::Incoming),
        state @ (RunState::InternalError | RunState::Shutdown) => Err(Refused::RunState(state)),
        _ => Ok(()),
    }
}

impl Plan {
    /// What will be executed.
    pub fn command(&self) -> &ExecCommand {
        &self.command
    }

    /// Where the state will go.
    pub fn channel(&self) -> &Path {
        self.channel.path()
    }
}

/// The parts of the VMM that an update walks through.
pub struct Walk<'a> {
    /// The machine.
    pub machine: &'a mut Machine,
    /// The QMP server.
    pub qmp: &'a mut Server,
    /// The migration's status.
    pub migration: &'a mut Migration,
    /// The log file, if there is one.
    pub log: Option<&'a std::fs::File>,
    /// Becomes readable when a signal asks the VMM to end. Nothing is read from it here.
    pub signals: BorrowedFd<'a>,
    /// Whether to start the helper that holds the old address space.
    pub helper: bool,
}

impl Walk<'_> {
    /// Carries out `plan`. Returns only if it failed, with everything undone and said.
    pub fn update(&mut self, plan: Plan) {
        let setup = self.migration.begin();
        self.tell(setup);
        let mut stopped = false;
        let Err(error) = self.attempt(plan, &mut stopped);
        let failed = self.migration.fail(error.to_string());
        self.tell(failed);
        if stopped {
            self.tell(Some(EventKind::Resume.now()));
        }
    }

    fn tell(&mut self, event: Option<Event>) {
        if let Some(event) = event {
            self.qmp.broadcast(&event);
        }
    }

    /// `stopped` says afterwards whether clients were told that the guest has stopped.
    fn attempt(&mut self, plan: Plan, stopped: &mut bool) -> Result<Infallible, UpdateError> {
        let Plan { command, channel, state_fd, began_ns } = plan;
        // Before the pause, as all that can be; it is the first to come and the last to go.
        let helper = match self.helper.then(MmHelper::start).transpose() {
            Ok(helper) => helper,
            Err(error) => {
                tracing::warn!(%error, "cpr_helper_missing: the update will take longer");
                None
            }
        };
        let paused = Paused::pause(self.machine)?;
        let paused_ns = monotonic_ns();
        if paused.before.is_running() {
            self.qmp.broadcast(&EventKind::Stop.now());
            *stopped = true;
        }
        for status in [MigrationStatus::Active, MigrationStatus::Device] {
            if let Some(event) = self.migration.advance(status) {
                self.qmp.broadcast(&event);
            }
        }
        let saved = Saved::save(&paused, channel)?;
        self.qmp.flush();
        let serial = paused.bus().map(|bus| bus.serial());
        let mut fds = outgoing_fds(&paused, serial.as_deref(), self.qmp, self.log);
        fds.add(SIGNALS_FD, 0, self.signals);
        let state = CprState {
            run_state: paused.before,
            fds: fds.list(),
            ram_blocks: vec![paused.ram().info()],
            channel: saved.fingerprint,
            qmp: self.qmp.save(),
            serial_listener: serial.as_ref().and_then(|serial| serial.host().listener_state()),
            pending_events: paused.unhandled_events(),
            helper: helper.as_ref().map(|helper| helper.pid().as_raw()),
            migration: MigrationRecord { events: self.migration.events(), began_ns, paused_ns },
        };
        let sealed = state_fd.write(&state)?;
        tracing::info!(fds = state.fds.len(), "cpr_state_save");
        let published = Published::new(fds, sealed)?;
        // Last: what comes later is seen in the new process, by the same descriptor.
        if has_come(self.signals) {
            return Err(UpdateError::AskedToEnd);
        }
        tracing::info!(command = command.name(), "cpr_exec");
        Err(published.exec(&command).into())
    }
}

/// No vCPU runs. Dropping it makes the machine what it was before.
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
        if self.before.is_running() {
            self.machine.resume();
        } else {
            self.machine.set_run_state(self.before);
        }
    }
}

/// The channel holds the whole state. Dropping it leaves no state there.
struct Saved {
    fingerprint: Fingerprint,
    _channel: OutgoingFile,
}

impl Saved {
    fn save(paused: &Paused<'_>, mut channel: OutgoingFile) -> Result<Self, UpdateError> {
        let fingerprint = channel.write(&paused.save()?)?;
        Ok(Self { fingerprint, _channel: channel })
    }
}

fn has_come(signals: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(signals, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn outgoing_fds<'a>(
    machine: &'a Machine,
    serial: Option<&'a SerialPort>,
    qmp: &'a Server,
    log: Option<&'a std::fs::File>,
) -> OutgoingFds<'a> {
    let mut fds = OutgoingFds::default();
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
    for (name, fd) in serial.map(SerialPort::preserved_fds).unwrap_or_default() {
        fds.add(name, 0, fd);
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
        let config = MachineConfig { memory, cpus: 1, cmdline: String::new() };
        Machine::new(config, RamBlock::create(memory).unwrap(), image).unwrap()
    }

    /// What a client sees of an update that fails.
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
            channel: OutgoingFile::open(dir.path().join("state")).unwrap(),
            state_fd: StateFd::create().unwrap(),
            began_ns: 0,
        };
        let (qmp_server, log) = (&mut qmp, None);
        Walk { machine, qmp: qmp_server, migration: &mut migration, log, signals, helper: false }
            .update(plan);
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
    fn a_signal_to_end_ends_the_update_and_stays_to_be_seen() {
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
    fn the_events_of_a_failed_update_are_in_order_and_in_pairs() {
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
