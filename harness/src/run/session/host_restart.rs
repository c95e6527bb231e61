//! A step across a restart of the host: a guest that was saved before it, with its RAM in a file that outlives it,
//! continues after it.
//!
//! The harness does not outlive the restart. It writes what the checks need of the first half next to the RAM,
//! and ends; the lab starts it again with the same arguments, and the case continues with the second half.

use std::fmt::Display;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cpr_qmp::run_state::RunState;
use serde::{Deserialize, Serialize};

use super::Session;
use super::launch::First;
use super::transfer::{moved, outcome, resumed};
use crate::backend::Channels;
use crate::check::{Ending, Finding, Handover, Transfer, progress, ram};
use crate::lab::restart::{self, Request};
use crate::observe::ram::digest_of;
use crate::process::environment::EnvironmentError;
use crate::run::evidence::Evidence;
use crate::run::update::channel;
use crate::run::{Options, Report, StepError};
use crate::scenario::{Case, Channel, HostRestart, Migrate, Mode};

/// The name of the file with what the checks need.
const LEFT: &str = "case.json";

/// The kernel's identifier of this boot of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What the first half of a case leaves for the second.
#[derive(Debug, Serialize, Deserialize)]
pub struct Left {
    /// The case.
    case: String,
    /// The index of the step.
    pub step: usize,
    /// The restart.
    restart: Request,
    /// The report so far.
    pub report: Report,
    /// How long the first half took.
    pub took: Duration,
    /// Where the new VMM gets the state from.
    state: String,
    /// The former VMM, which has ended.
    transfer: Transfer,
    /// The expected run state.
    run_state: RunState,
    /// How often the guest had booted.
    boots: u32,
    /// Updates that succeeded.
    updates: u32,
    /// Updates that were attempted.
    tried: u32,
    /// The digest of guest RAM.
    ram: u64,
    /// The heartbeats of each vCPU.
    heartbeats: Vec<u64>,
    /// The identifier of the host's boot.
    boot: String,
}

impl Left {
    /// Reads what the first half of `case` has left, if this is the second. It is read once: a case that is run
    /// again starts from its beginning.
    pub fn take(case: &Case) -> Result<Option<Self>, EnvironmentError> {
        let Some(path) = path() else { return Ok(None) };
        let text = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(EnvironmentError::file("read", &path))?,
        };
        let left: Self = serde_json::from_slice(&text)
            .map_err(|e| EnvironmentError::file("read", &path)(e.into()))?;
        if left.case != case.name {
            return Ok(None);
        }
        fs::remove_file(&path).map_err(EnvironmentError::file("remove", &path))?;
        Ok(Some(left))
    }

    /// Returns the name of the case whose first half has left something here.
    pub fn waiting() -> Option<String> {
        let path = Path::new(restart::KEPT).join(LEFT);
        let text = fs::read(path).ok().filter(|_| restart::is_possible())?;
        serde_json::from_slice(&text).ok().map(|left: Self| left.case)
    }

    /// Writes it with what is known of the first half, and asks for the restart, which happens when this
    /// process has ended. `step` is the index of the step.
    pub fn leave(
        mut self,
        step: usize,
        report: Report,
        took: Duration,
    ) -> Result<(), EnvironmentError> {
        (self.step, self.report, self.took) = (step, report, took);
        let path = path().unwrap_or_default();
        let text = serde_json::to_vec(&self).map_err(std::io::Error::from);
        text.and_then(|text| fs::write(&path, text))
            .map_err(EnvironmentError::file("write", &path))?;
        restart::request(&self.restart).map_err(EnvironmentError::file("write", restart::REQUEST))
    }
}

fn path() -> Option<PathBuf> {
    restart::kept().map(|folder| folder.join(LEFT))
}

impl<'a> Session<'a> {
    /// Saves the VM and ends its VMM, so that the host can be restarted.
    pub(super) fn leave_host(&mut self, restart: &HostRestart) -> Result<Left, StepError> {
        let folder = restart::kept().ok_or_else(|| {
            StepError::Process("this host has no memory that outlives its restart".into())
        })?;
        self.tried += 1;
        let channel = channel::prepare(Channel::File, folder, self.tried)?;
        self.note_files();
        let arguments = channel.arguments.clone();
        let (_, ending) = self.ask_to_move(&reboot(), arguments, Self::await_former)?;
        if ending != Ending::Completed {
            return Err(outcome(format!("the VM was not saved: {ending:?}")));
        }
        let cpus = self.case.vm.cpus;
        let view = self.page()?.read().map_err(|source| self.mailbox_error(source))?;
        let transfer = self.describe_former(&reboot())?;
        self.quit_former()?;
        self.check_conversation()?;
        let ram = ram(&self.files.ram, self.case.vm.memory.0)?;
        Ok(Left {
            case: self.case.name.clone(),
            step: 0,
            restart: Request { series: restart.kernel.clone() },
            report: Report::of(&self.case.name, String::new(), String::new()),
            took: Duration::ZERO,
            state: channel.state,
            transfer,
            run_state: self.run_state,
            boots: self.boots,
            updates: self.updates,
            tried: self.tried,
            ram,
            heartbeats: view.heartbeats(cpus),
            boot: boot()?,
        })
    }

    /// Starts the VMM that loads what the first half has left.
    pub fn take_up(
        case: &'a Case,
        options: &'a Options,
        mut evidence: Evidence,
        work: &Path,
        left: &Left,
    ) -> Result<Self, Box<(Evidence, StepError)>> {
        let channels = Channels::file(left.state.clone());
        let first = First { incoming: Some(&channels) };
        let started = came_back(case, left)
            .and_then(|()| Self::start(case, options, &mut evidence, work, first));
        match started {
            Err(e) => Err(Box::new((evidence, e))),
            Ok(parts) => {
                let mut session = Self::assemble(case, options, evidence, work, parts);
                session.run_state = left.run_state;
                (session.boots, session.tried) = (left.boots, left.tried);
                let report = left.report.clone();
                session.updates = left.updates;
                session.blackouts = report.blackouts;
                session.phases = report.phases;
                session.host_seen = report.host_seen;
                session.failed_updates = report.failed_updates;
                session.refusals = report.refusals;
                session.kills = report.kills;
                session.revivals = report.revivals;
                session.memory_kib = report.memory_kib;
                Ok(session)
            }
        }
    }

    /// Waits until the VMM that [`take_up`](Self::take_up) has started runs the guest, and checks everything.
    pub fn continue_on_new_host(&mut self, left: &Left) -> Result<(), StepError> {
        let resumed = resumed(&mut self.qmp, self.options.patience.update);
        resumed.map_err(|why| outcome(format!("the saved VM does not continue: {why}")))?;
        self.note_transfer();
        self.last_status = left.transfer.migration.clone();
        let mut transfer = left.transfer.clone();
        transfer.sockets_left = Vec::new();
        let ran = left.run_state.is_running();
        self.handover = Handover::NewProcess(Box::new(transfer));
        self.check(&moved(&reboot(), Ending::Completed, left.state.clone()), ran)?;
        let digest = self.seen.as_ref().and_then(|seen| seen.digest);
        if let Some(now) = digest.filter(|now| *now != left.ram) {
            return Err(changed(&self.files.ram, "while it was loaded", left.ram, now));
        }
        let cpus = self.case.vm.cpus;
        let now =
            self.page()?.read().map_err(|source| self.mailbox_error(source))?.heartbeats(cpus);
        let back = left.heartbeats.iter().zip(&now).any(|(then, now)| now < then);
        if back || now.len() < left.heartbeats.len() {
            let why = format!(
                "the guest's heartbeats were {:?} before the restart of the host, now they are {now:?}",
                left.heartbeats
            );
            return Err(StepError::Checks(vec![Finding::new(progress::CHECK.name, why)]));
        }
        Ok(())
    }
}

/// Checks that the host has been restarted, and that guest RAM outlived that.
fn came_back(case: &Case, left: &Left) -> Result<(), StepError> {
    if boot()? == left.boot {
        return Err(StepError::Process("the host was not restarted".into()));
    }
    let path = restart::kept().unwrap_or(Path::new("")).join(super::super::evidence::RAM);
    let now = ram(&path, case.vm.memory.0)?;
    if now != left.ram {
        return Err(changed(path.display(), "across the restart of the host", left.ram, now));
    }
    Ok(())
}

/// The error that guest RAM in `file` is not as it was.
fn changed(file: impl Display, when: &str, was: u64, is: u64) -> StepError {
    let why = format!("{file} has changed {when}: its digest was {was:016x}, is {is:016x}");
    StepError::Checks(vec![Finding::new(ram::CHECK.name, why)])
}

/// The update of which the restart of the host is a part.
fn reboot() -> Migrate {
    Migrate { mode: Mode::CprReboot, ..Migrate::default() }
}

fn boot() -> Result<String, EnvironmentError> {
    fs::read_to_string(BOOT_ID).map_err(EnvironmentError::file("read", BOOT_ID))
}

fn ram(path: impl AsRef<Path>, bytes: u64) -> Result<u64, EnvironmentError> {
    let digest = File::open(path.as_ref()).and_then(|file| digest_of(&file, bytes));
    digest.map_err(EnvironmentError::file("read", path.as_ref()))
}
