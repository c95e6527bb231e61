//! Everything that is seen of a VMM at one moment, between two steps.

use cpr_qmp::run_state::StatusInfo;
use serde_json::Value;

use super::fds::FdTable;
use super::mailbox::{MailboxPage, View};
use super::process::{self, Executable, ProcError, Stat};
use super::qmp::{Command, Qmp, QmpFault};
use super::ram::{Ram, RamError};
use super::surroundings::Surroundings;

/// Why a VMM could not be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// `/proc` did not answer.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// Its RAM was not found.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// It does not answer.
    #[error(transparent)]
    Qmp(#[from] QmpFault),
    /// The mailbox could not be read.
    #[error("cannot read the mailbox of process {pid}: {source}")]
    Mailbox {
        /// Whose.
        pid: i32,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// What to look for.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// The process.
    pub pid: i32,
    /// Bytes of guest RAM.
    pub ram_bytes: u64,
    /// RAM is shared.
    pub ram_shared: bool,
    /// The guest should stand still, so that a digest of its RAM means something.
    pub stopped: bool,
}

/// A VMM at one moment.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The process.
    pub process: Stat,
    /// What it executes.
    pub executable: Executable,
    /// Its descriptors.
    pub fds: FdTable,
    /// Its child processes.
    pub children: Vec<Stat>,
    /// Memory of its own, in KiB.
    pub memory_kib: u64,
    /// What it has around it.
    pub surroundings: Surroundings,
    /// Its environment.
    pub environ: Vec<String>,
    /// The guest's RAM.
    pub ram: Ram,
    /// Digest of the RAM, where the guest stands still.
    pub digest: Option<u64>,
    /// Access to the mailbox.
    pub page: MailboxPage,
    /// What the mailbox said.
    pub mailbox: View,
    /// `query-status`.
    pub status: StatusInfo,
    /// `query-migrate`.
    pub migrate: Value,
    /// `query-migrate-parameters`.
    pub parameters: Value,
}

impl Observation {
    /// Looks at everything.
    pub fn take(subject: Subject, qmp: &mut Qmp) -> Result<Self, ObserveError> {
        let pid = subject.pid;
        let status = qmp.query("query-status")?;
        let migrate = qmp.execute(Command::plain("query-migrate"))?;
        let parameters = qmp.execute(Command::plain("query-migrate-parameters"))?;
        let process = Stat::read(pid)?;
        let executable = Executable::of(pid)?;
        let fds = FdTable::read(pid)?;
        let ram = Ram::find(pid, subject.ram_bytes, subject.ram_shared, &fds)?;
        let digest = if subject.stopped { ram.digest()? } else { None };
        let page = ram.mailbox()?;
        let mailbox = page.read().map_err(|source| ObserveError::Mailbox { pid, source })?;
        Ok(Self {
            process,
            executable,
            fds,
            children: process::children(pid)?,
            memory_kib: process::anonymous_kib(pid)?,
            surroundings: Surroundings::of(pid)?,
            environ: process::environ(pid)?,
            ram,
            digest,
            page,
            mailbox,
            status,
            migrate,
            parameters,
        })
    }
}
