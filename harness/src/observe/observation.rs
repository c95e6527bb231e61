//! Everything that is observed of a VMM at one moment, between two steps.

use std::path::Path;

use cpr_qmp::info::CpuInfoFast;
use cpr_qmp::run_state::StatusInfo;
use serde_json::Value;

use super::fds::FdTable;
use super::image::Image;
use super::mailbox::{MailboxPage, View};
use super::proc_error::ProcError;
use super::process::{self, Executable, Stat};
use super::qmp::{Command, Qmp, QmpFault};
use super::queries::Queries;
use super::ram::{Ram, RamError};
use super::{file_facts, kvm_state, process_facts};
use crate::observe::facts::Facts;
use crate::observe::files::Files;

/// Why a VMM could not be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// `/proc` could not be read.
    #[error(transparent)]
    Proc(#[from] ProcError),
    /// Its RAM was not found.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A QMP command failed.
    #[error(transparent)]
    Qmp(#[from] QmpFault),
    /// The mailbox could not be read.
    #[error("cannot read the mailbox of process {pid}: {source}")]
    Mailbox {
        /// The process.
        pid: i32,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// The VM to observe.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The process.
    pub pid: i32,
    /// Bytes of guest RAM.
    pub ram_bytes: u64,
    /// Whether RAM is shared.
    pub ram_shared: bool,
    /// Whether the guest should be stopped, which makes a digest of its RAM meaningful.
    pub stopped: bool,
    /// Why the VMM is not asked for the KVM state, if so.
    pub not_audited: Option<NotAudited>,
    /// See [`kvm_state::FILE_VARIABLE`].
    pub audit: &'a Path,
    /// The folder of the case.
    pub work: &'a Path,
    /// The VM's files, in that folder or elsewhere.
    pub files: &'a Files,
}

/// Why a VMM with a stopped guest is not asked for the KVM state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAudited {
    /// It may not have enough memory for the answer.
    LittleAddressSpace,
    /// A vCPU is about to start: reading its MP state makes KVM start it.
    StartPending,
}

/// What was observed of a VMM at one moment.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The process.
    pub process: Stat,
    /// Its executable.
    pub executable: Executable,
    /// Its command line and auxiliary vector.
    pub image: Image,
    /// Its descriptors.
    pub fds: FdTable,
    /// Its child processes.
    pub children: Vec<Stat>,
    /// Its own memory, in KiB.
    pub memory_kib: u64,
    /// The facts that the audit of the process reads.
    pub facts: Facts,
    /// The facts that the audit of the files reads.
    pub files: Facts,
    /// `query-cpus-fast`.
    pub cpus: Vec<CpuInfoFast>,
    /// Its environment.
    pub environ: Vec<String>,
    /// The guest's RAM.
    pub ram: Ram,
    /// Digest of the RAM, if the guest is stopped.
    pub digest: Option<u64>,
    /// Access to the mailbox.
    pub page: MailboxPage,
    /// The content of the mailbox.
    pub mailbox: View,
    /// The KVM state, if the guest is stopped and the VMM reports it.
    pub stopped_kvm: Option<Facts>,
    /// The KVM state at both ends of an update since the last observation.
    pub crossing: Option<[Facts; 2]>,
    /// `query-status`.
    pub status: StatusInfo,
    /// `query-migrate`.
    pub migrate: Value,
    /// `query-migrate-parameters`.
    pub parameters: Value,
    /// Its answers to all queries.
    pub queries: Facts,
}

impl Observation {
    /// Observes everything, and sends the `queries`, if any.
    pub fn take(
        subject: Subject<'_>,
        qmp: &mut Qmp,
        queries: Option<&Queries>,
    ) -> Result<Self, ObserveError> {
        let pid = subject.pid;
        let status: StatusInfo = qmp.query("query-status")?;
        let migrate = qmp.execute(Command::plain("query-migrate"))?;
        let parameters = qmp.execute(Command::plain("query-migrate-parameters"))?;
        // The check `run_state` reports a guest that runs although it should not.
        let stands = subject.stopped && !status.running;
        let stopped_kvm = match stands && subject.not_audited.is_none() {
            true => kvm_state::while_stopped(qmp)?,
            false => None,
        };
        let queries = queries.map(|queries| queries.ask(qmp)).transpose()?.unwrap_or_default();
        let cpus = qmp.query("query-cpus-fast")?;
        // Removes its files before the files are audited.
        let crossing = kvm_state::crossing(subject.audit);
        let process = Stat::read(pid)?;
        let executable = Executable::of(pid)?;
        let image = Image::of(pid)?;
        let fds = FdTable::read(pid)?;
        let Subject { ram_bytes, ram_shared, files, .. } = subject;
        let ram = Ram::find(pid, ram_bytes, ram_shared, &files.ram, &fds)?;
        let digest = if subject.stopped { ram.digest()? } else { None };
        let page = ram.mailbox()?;
        let mailbox = page.read().map_err(|source| ObserveError::Mailbox { pid, source })?;
        Ok(Self {
            process,
            executable,
            image,
            facts: process_facts::read(pid, &fds),
            children: process::children(pid)?,
            files: file_facts::of_vm(subject.work, subject.files),
            cpus,
            fds,
            memory_kib: process::anonymous_kib(pid)?,
            environ: process::environ(pid)?,
            ram,
            digest,
            page,
            mailbox,
            stopped_kvm,
            crossing,
            status,
            migrate,
            parameters,
            queries,
        })
    }
}
