//! An update that was checked, with everything created that can be created while the guest runs.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use cpr_qmp::address::MigrationAddress;
use cpr_qmp::migration::{MigMode, MigrationParameters};
use cpr_qmp::run_state::RunState;

use super::command::{CommandError, ExecCommand};
use super::deadlines::DEFAULT_DEADLINE;
use super::downtime::{MaxDowntime, TooLong};
use super::fall_back::Record;
use super::headroom::{self, NoRoom};
use super::monotonic::monotonic_ns;
use super::state::{SavedStateFd, StateFd, WriteError};
use crate::machine::{Machine, SECTIONS};
use crate::migration::blockers::blocked_reasons;
use crate::migration::channel::{self, ChannelError, OutgoingFile};
use crate::migration::status::Migration;
use crate::own_binary;
use crate::private_file::Retraction;
use crate::qmp::Server;
use crate::state::Formats;
use crate::switch::Switch;

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
    /// The guest has not been loaded yet.
    #[error("Guest is waiting for an incoming migration")]
    Incoming,
    /// The guest was transferred.
    #[error("the guest runs in another process, to which it was transferred: use that VMM")]
    Moved,
    /// The guest was saved for a later process, or migrated.
    #[error(
        "the guest was saved or migrated: use the VMM that has it, start one with --incoming, or \
         continue it here with cont"
    )]
    Saved,
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
    /// The guest would be stopped for too long.
    #[error(transparent)]
    TooLong(#[from] TooLong),
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

impl Refused {
    /// Why the guest of `machine`, in `postmigrate`, cannot be used.
    pub fn gone(machine: &Machine) -> Self {
        // A guest that was transferred is not here any more.
        if machine.bus().is_some() { Self::Saved } else { Self::Moved }
    }
}

/// A checked update, with everything created that can be created while the guest runs.
#[derive(Debug)]
pub struct Plan {
    pub(super) command: ExecCommand,
    pub(super) channel: OutgoingFile,
    pub(super) state_fd: StateFd,
    pub(super) saved_fd: SavedStateFd,
    pub(super) binary: OwnedFd,
    pub(super) record: Record,
    pub(super) began_ns: u64,
    /// Whether the command is known to be a VMM that unblocks the signals blocked for it.
    pub(super) rehearsed: bool,
    /// Whether the command passes the commit point; true as well if that is unknown.
    pub(super) commits: bool,
    /// What the state is written in.
    pub(super) formats: Formats,
    /// How long the guest may be stopped.
    pub(super) max_downtime: Option<MaxDowntime>,
    /// How long the rehearsal took.
    pub(super) rehearsal: Option<Duration>,
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
    let command = ExecCommand::prepare(parameters.cpr_exec_command.as_deref())?;
    let path = channel::file_path(address)?;
    if let Some(reason) = blocked_reasons(machine.ram(), MigMode::CprExec).into_iter().next() {
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
        formats: Formats::for_unknown_reader(&SECTIONS),
        max_downtime: MaxDowntime::of(parameters),
        rehearsal: None,
    })
}

/// Checks that the guest is in a state in which it can be updated.
pub fn check_run_state(machine: &Machine) -> Result<(), Refused> {
    match machine.run_state() {
        RunState::Inmigrate => Err(Refused::Incoming),
        RunState::Postmigrate => Err(Refused::gone(machine)),
        state @ (RunState::InternalError | RunState::Shutdown) => Err(Refused::RunState(state)),
        _ => Ok(()),
    }
}

impl Plan {
    /// Returns the command to execute.
    pub fn command(&self) -> &ExecCommand {
        &self.command
    }

    /// Marks the command as rehearsed; `commits`: it passes the commit point; `formats`: what it reads;
    /// `took`: how long the rehearsal took.
    pub fn rehearsed(self, commits: bool, formats: Formats, took: Duration) -> Self {
        Self { rehearsed: true, commits, formats, rehearsal: Some(took), ..self }
    }

    /// Checks that the update can be expected to stop the guest no longer than it may.
    pub fn check_downtime(&self, machine: &Machine, migration: &Migration) -> Result<(), Refused> {
        match (self.max_downtime, migration.last_blackout()) {
            (Some(limit), Some(last)) if machine.run_state().is_running() => {
                Ok(limit.check(last, self.rehearsal)?)
            }
            _ => Ok(()),
        }
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
