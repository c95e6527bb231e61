//! Everything that is seen of a VMM at one moment, between two steps.

use std::path::Path;

use cpr_qmp::info::CpuInfoFast;
use cpr_qmp::run_state::StatusInfo;
use serde_json::Value;

use super::fds::FdTable;
use super::image::Image;
use super::kvm_state;
use super::mailbox::{MailboxPage, View};
use super::process::{self, Executable, ProcError, Stat};
use super::qmp::{Command, Qmp, QmpFault};
use super::queries::Queries;
use super::ram::{Ram, RamError};
use crate::audit::{self, Facts};
use crate::backend::Files;

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
pub struct Subject<'a> {
    /// The process.
    pub pid: i32,
    /// Bytes of guest RAM.
    pub ram_bytes: u64,
    /// RAM is shared.
    pub ram_shared: bool,
    /// The guest should stand still, so that a digest of its RAM means something.
    pub stopped: bool,
    /// Why the VMM is not asked for what KVM tells.
    pub not_audited: Option<NotAudited>,
    /// See [`kvm_state::FILE_VARIABLE`].
    pub audit: &'a Path,
    /// The folder of the case.
    pub work: &'a Path,
    /// The VM's files, there or elsewhere.
    pub files: &'a Files,
}

/// Why a VMM whose guest stands still is not asked for what KVM tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAudited {
    /// It might lack memory for the answer.
    LittleAddressSpace,
    /// A vCPU is to start: to ask for its MP state makes KVM start it.
    StartPending,
}

/// A VMM at one moment.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The process.
    pub process: Stat,
    /// What it executes.
    pub executable: Executable,
    /// Its command line, and where the kernel has put it.
    pub image: Image,
    /// Its descriptors.
    pub fds: FdTable,
    /// Its child processes.
    pub children: Vec<Stat>,
    /// Memory of its own, in KiB.
    pub memory_kib: u64,
    /// What the audit of the process finds.
    pub facts: Facts,
    /// What the audit of the files finds.
    pub files: Facts,
    /// `query-cpus-fast`.
    pub cpus: Vec<CpuInfoFast>,
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
    /// What KVM tells, where the guest stands still and the VMM passes it on.
    pub standing: Option<Facts>,
    /// What KVM told at both ends of an update since the last look.
    pub crossing: Option<[Facts; 2]>,
    /// `query-status`.
    pub status: StatusInfo,
    /// `query-migrate`.
    pub migrate: Value,
    /// `query-migrate-parameters`.
    pub parameters: Value,
    /// What it answers to everything that it can be asked.
    pub queries: Facts,
}

impl Observation {
    /// Looks at everything, and asks the `queries`, if there are to be any.
    pub fn take(
        subject: Subject<'_>,
        qmp: &mut Qmp,
        queries: Option<&Queries>,
    ) -> Result<Self, ObserveError> {
        let pid = subject.pid;
        let status: StatusInfo = qmp.query("query-status")?;
        let migrate = qmp.execute(Command::plain("query-migrate"))?;
        let parameters = qmp.execute(Command::plain("query-migrate-parameters"))?;
        // One that runs, though it should not, is for the check `run_state`.
        let stands = subject.stopped && !status.running;
        let standing = match stands && subject.not_audited.is_none() {
            true => kvm_state::standing(qmp)?,
            false => None,
        };
        let queries = queries.map(|queries| queries.ask(qmp)).transpose()?.unwrap_or_default();
        let cpus = qmp.query("query-cpus-fast")?;
        // Takes its files away, before the others are looked at.
        let crossing = kvm_state::crossing(subject.audit);
        let process = Stat::read(pid)?;
        let executable = Executable::of(pid)?;
        let image = Image::of(pid)?;
        let fds = FdTable::read(pid)?;
        let ram = Ram::find(pid, subject.ram_bytes, subject.ram_shared, &fds)?;
        let digest = if subject.stopped { ram.digest()? } else { None };
        let page = ram.mailbox()?;
        let mailbox = page.read().map_err(|source| ObserveError::Mailbox { pid, source })?;
        Ok(Self {
            process,
            executable,
            image,
            facts: audit::process::read(pid, &fds),
            children: process::children(pid)?,
            files: audit::files::of_vm(subject.work, subject.files),
            cpus,
            fds,
            memory_kib: process::anonymous_kib(pid)?,
            environ: process::environ(pid)?,
            ram,
            digest,
            page,
            mailbox,
            standing,
            crossing,
            status,
            migrate,
            parameters,
            queries,
        })
    }
}
