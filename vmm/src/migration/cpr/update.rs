//! The old process's side of an update: check, pause, save, publish, exec.
//!
//! Each step returns a guard whose `Drop` undoes it, so a failure anywhere unwinds them in reverse
//! order: no separate rollback code can miss a step. `exec` consumes the last guards and returns
//! only an error.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use cpr_qmp::event::EventKind;
use cpr_qmp::message::Event;
use cpr_qmp::migration::{MigrationParameters, MigrationStatus};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::command::ExecError;
use super::deadlines::GRACE;
use super::downtime::Exceeded;
use super::fall_back::{self, ArmError};
use super::fd_names::{BINARY_FD, SAVED_FD};
use super::held_signals::HeldSignals;
use super::monotonic::monotonic_ns;
use super::named_fds::NamedFd;
use super::outgoing::{SerialHandOver, View, outgoing_fds};
use super::phases::Phases;
use super::plan::Plan;
use super::publish::{PublishError, Published};
use super::safeguard::{Safeguard, SafeguardError};
use super::state::{CprState, MigrationRecord, SavedStateFd, SealedFd, WriteError};
use super::variables::STATE;
use crate::machine::{Machine, MachineError};
use crate::migration::channel::{ChannelError, OutgoingFile};
use crate::migration::paused::Paused;
use crate::migration::status::Migration;
use crate::qmp::Server;
use crate::state::{Fingerprint, Formats};

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
    /// The guest has been stopped for too long.
    #[error(transparent)]
    Downtime(#[from] Exceeded),
    /// The time that the guest is stopped cannot be limited.
    #[error(transparent)]
    Limit(#[from] ArmError),
    /// A termination signal arrived.
    #[error("the VMM received a termination signal")]
    AskedToEnd,
    /// The command cannot be executed.
    #[error(transparent)]
    Exec(#[from] ExecError),
}

/// The parts of the VMM that an update uses.
pub struct UpdateContext<'a> {
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

impl UpdateContext<'_> {
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
        let Plan { rehearsed, commits, began_ns, formats, max_downtime, rehearsal, .. } = plan;
        let Plan { command, channel, state_fd, saved_fd, binary, mut record, .. } = plan;
        fail_point!(Helper);
        let record_deadline = Duration::from_millis(record.deadline_ms);
        let _watched = self.safeguard.watched(record_deadline);
        let _retracted = fall_back::retracted(channel.retraction().clone());
        channel.clear_target()?;
        fail_point!(Pause);
        let (pausing_ns, mut phases) = (monotonic_ns(), Phases::outgoing());
        let paused = Paused::pause(self.machine)?;
        let paused_ns = monotonic_ns();
        if paused.before().is_running() {
            self.qmp.broadcast(&EventKind::Stop.now());
            *self.stopped = true;
        }
        let max_downtime = max_downtime.filter(|_| paused.before().is_running());
        record.downtime_end_ns = max_downtime.map(|limit| limit.end_ns(paused_ns));
        let _limited = record.downtime_end_ns.map(fall_back::limit_downtime).transpose()?;
        if let Some(left) = record.downtime_left().filter(|left| *left < record_deadline) {
            self.safeguard.expect_end_within(Some(left + GRACE));
        }
        fail_point!(Paused);
        for status in [MigrationStatus::Active, MigrationStatus::Device] {
            if let Some(event) = self.migration.advance(status) {
                self.qmp.broadcast(&event);
            }
        }
        let saved = Saved::save(&paused, &formats, channel, saved_fd)?;
        phases.stamp("save");
        audit_point!(paused, Old);
        self.safeguard.set_told_stopped(*self.stopped);
        self.qmp.flush_published();
        let serial = SerialHandOver::of(&paused);
        let view = View {
            machine: &paused,
            run_state: paused.before(),
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
            run_state: paused.before(),
            ram_blocks: vec![paused.ram().info()],
            channel: saved.fingerprint,
            qmp: self.qmp.save(),
            serial_listener: serial.listener.clone(),
            pending_events: paused.unhandled_events(),
            helper: Some(record.helper).filter(|keeper| *keeper != 0),
            migration: MigrationRecord {
                events: self.migration.events(),
                began_ns,
                paused_ns,
                rehearsal_ns: rehearsal.map(|took| took.as_nanos() as u64),
                last: self.migration.last_blackout(),
            },
            pid_file: self.pid_file.clone().map(|path| path.into_os_string().into_vec().into()),
            parameters: self.parameters.clone(),
            msr_choice: paused.msr_choice(),
            live: None,
        };
        fail_point!(State);
        if let Some(limit) = max_downtime {
            // For a new binary that does not know the member `downtime_end_ns`.
            let left = limit.left(paused_ns)?.as_millis() as u64;
            record.deadline_ms = record.deadline_ms.min(left);
        }
        let sealed = state_fd.write(&record, &state)?;
        let _saved = self.safeguard.saved(&record);
        tracing::info!(fds = record.fds.len(), "cpr_state_save");
        fail_point!(Publish);
        let published = Published::new(fds, sealed)?;
        fail_point!(Exec);
        let _held = rehearsed.then(HeldSignals::hold);
        if !commits {
            // No process could tell whether it has run the guest.
            self.safeguard.release_keeper();
        }
        // Last: the new process sees a later signal, by the same descriptor.
        if signal_pending(self.signals[0]) {
            return Err(UpdateError::AskedToEnd);
        }
        #[cfg(feature = "failpoints")]
        crate::failpoints::relieve();
        phases.stamp("publish");
        // The new binary gets the full deadline from here on.
        self.safeguard.expect_end_within(Some(record.time_left() + GRACE));
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

/// Reports that an update failed; `stopped`: clients were told that the guest has stopped.
pub fn report_failure(qmp: &mut Server, migration: &mut Migration, error: String, stopped: bool) {
    #[cfg(feature = "failpoints")]
    crate::failpoints::seam::update_failed();
    let failed = migration.fail(error);
    let resumed = stopped.then(|| EventKind::Resume.now());
    failed.into_iter().chain(resumed).for_each(|event| qmp.broadcast(&event));
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
        formats: &Formats,
        mut channel: OutgoingFile,
        copy: SavedStateFd,
    ) -> Result<Self, UpdateError> {
        fail_point!(Save);
        let (bytes, fingerprint) = paused.save(formats)?.encode(formats.state);
        fail_point!(Channel);
        channel.write(&bytes)?;
        fail_point!(Copy);
        Ok(Self { fingerprint, copy: copy.write(&bytes)?, _channel: channel })
    }
}

/// Returns whether a termination signal has arrived.
pub fn signal_pending(signals: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(signals, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
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
        (STATE, plan.state_fd.as_raw_fd()),
    ] {
        list.push(NamedFd { name: name.to_owned(), id: 0, fd });
    }
    list
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::boot::{self, BootImage};
    use crate::devices::serial::{SerialConfig, SerialHost};
    use crate::machine::MachineConfig;
    use crate::machine::SECTIONS;
    use crate::memory::{MemoryConfig, PageKind, RamBlock};
    use crate::migration::cpr::command::ExecCommand;
    use crate::migration::cpr::deadlines::DEFAULT_DEADLINE;
    use crate::migration::cpr::fall_back::Record;
    use crate::migration::cpr::state::StateFd;
    use crate::own_binary;
    use crate::switch::Switch;

    fn machine(image: Option<BootImage>) -> Machine {
        let memory = MemoryConfig { size: 4 << 20, share: true, pages: PageKind::Small };
        let config = MachineConfig {
            memory,
            cpus: 1,
            cmdline: String::new(),
            test_device: false,
            devices: Vec::new(),
        };
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
            formats: Formats::newest(&SECTIONS),
            max_downtime: None,
            rehearsal: None,
        };
        let (qmp_server, log) = (&mut qmp, None);
        let mut stopped = false;
        let error = UpdateContext {
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
        report_failure(&mut qmp, &mut migration, error.to_string(), stopped);
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
        assert!(signal_pending(signals.as_fd()));
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
