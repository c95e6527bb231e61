//! A VM under test: the process, the conversation, and what is expected of it.

mod launch;
mod look;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use cpr_qmp::run_state::RunState;
use serde_json::Value;

pub(super) use launch::executable;
pub(super) use look::fits_protocol;

use super::blackout::Measurement;
use super::clients::Bystander;
use super::evidence::Evidence;
use super::failure::StepError;
use super::notify::Notify;
use super::outside::Outside;
use super::serial::SerialClient;
use super::soak::Pace;
use super::verdict::{FailedUpdate, HostSeen, Kill, Refusal, Revived};
use super::vm::Vm;
use super::watchdog::Watchdog;
use super::{Options, limit};
use crate::audit::Facts;
use crate::backend::{Backend, Files, Launch};
use crate::check::Handover;
use crate::check::startup::Startup;
use crate::observe::fds::FdTable;
use crate::observe::observation::Observation;
use crate::observe::phases::UpdatePhases;
use crate::observe::process::Executable;
use crate::observe::qmp::Qmp;
use crate::observe::queries::Queries;
use crate::scenario::{Case, Inject};

/// State files of the newest updates that stay while a soak goes on.
const STATES_KEPT: u32 = 4;

/// Everything about the VM of one case.
pub struct Session<'a> {
    /// The case.
    pub case: &'a Case,
    /// The run it belongs to.
    pub options: &'a Options,
    /// Where evidence goes.
    pub evidence: Evidence,
    /// A folder with a short path, for the socket and what else is made.
    pub work: PathBuf,
    /// The VM's files.
    pub files: Files,
    /// The VMM's process.
    pub vm: Vm,
    /// The conversation with it.
    pub qmp: Qmp,
    /// Another client, which only listens.
    pub(super) bystander: Bystander,
    /// The run state it must have.
    pub run_state: RunState,
    /// What it must execute.
    pub executable: Executable,
    /// The file that it was started from.
    pub started_from: PathBuf,
    /// What it executes if the update that was last prepared succeeds.
    pub(super) updated: Executable,
    /// The arguments in the newest command for an update.
    pub(super) asked: Vec<String>,
    /// Updates that succeeded since it was started.
    handed_over: u32,
    /// The descriptors and the facts of each build when it was last looked at, by the build's file.
    of_build: BTreeMap<PathBuf, (FdTable, Facts)>,
    /// The file of the build at the last look.
    looked_at: PathBuf,
    /// Limits that were changed, as they were.
    pub limits: Vec<limit::Saved>,
    /// A vCPU has been told to start, and the guest has not run since.
    pub(super) start_pends: bool,
    /// The state file of the last update that succeeded.
    pub earlier_state: Option<String>,
    /// What else it is asked at each look, once that is known.
    queries: Option<Queries>,
    /// The newest look at it.
    pub seen: Option<Observation>,
    /// Events before this one were checked.
    pub events_checked: usize,
    /// Events of this step that were checked.
    heard: Vec<String>,
    /// How the updates of this step have ended.
    endings: Vec<String>,
    /// Status in the newest `MIGRATION` event.
    pub last_status: Option<String>,
    /// How often the guest must have booted.
    pub boots: u32,
    /// Updates that succeeded.
    pub updates: u32,
    /// Updates tried.
    pub tried: u32,
    /// What the next update meets.
    pub injection: Option<Inject>,
    /// A blackout that is being measured.
    pub measuring: Option<Measurement>,
    /// The serial port's client.
    pub serial: Option<SerialClient>,
    /// The number of the next line that a client of the serial port sends.
    pub serial_next: Arc<AtomicU32>,
    /// Blackouts measured.
    pub blackouts: Vec<Duration>,
    /// The phases of updates that succeeded, where the VMM tells them.
    pub phases: Vec<UpdatePhases>,
    /// What the host saw of updates that were measured.
    pub host_seen: Vec<HostSeen>,
    /// The errors of updates that did not succeed.
    pub failed_updates: Vec<FailedUpdate>,
    /// The largest gap between heartbeats in calm times, once one was watched.
    pub(super) calm: Option<Duration>,
    /// What the guest noticed of an update that was refused, before it is judged.
    pub(super) refused: Option<Refusal>,
    /// What the guest noticed of updates that were refused.
    pub refusals: Vec<Refusal>,
    /// Updates cut off by SIGKILL.
    pub kills: Vec<Kill>,
    /// Deaths of the VMM's process that the VM has survived.
    pub revivals: Vec<Revived>,
    /// In which process the VM is since the last look at it.
    pub(super) handover: Handover,
    /// Where the VMM tells its service manager.
    pub(super) notify: Notify,
    /// What there was outside the case's folder before the VMM was started.
    pub(super) outside: Outside,
    /// The VMM's own memory in KiB, after boot and after each update.
    memory_kib: Vec<u64>,
    startup: Startup,
    watchdog: Watchdog,
    /// Who says how long a soak goes on; the number of its updates if nobody does.
    pub(super) pace: Option<&'a dyn Pace>,
    kvm: bool,
    began: Instant,
}

impl<'a> Session<'a> {
    /// The build that the next update goes to.
    pub(super) fn next_build(&self) -> &'a dyn Backend {
        let backend = &*self.options.backend;
        backend.next(self.handed_over).unwrap_or(backend)
    }

    /// The file of the build that runs now.
    fn build(&self) -> &'a Path {
        let backend = &*self.options.backend;
        let last = self.handed_over.checked_sub(1);
        last.and_then(|done| backend.next(done)).unwrap_or(backend).binary()
    }

    /// What to launch, for the arguments of an update.
    pub fn launch(&self) -> Launch<'_> {
        let case = self.case;
        Launch { vm: &case.vm, seed: case.seed, name: &case.name, files: &self.files }
    }

    /// Notes an update that succeeded, with its state file.
    pub fn note_update(&mut self, state: String) {
        self.updates += 1;
        self.handed_over += 1;
        self.executable = self.updated.clone();
        self.earlier_state = Some(state);
    }

    /// True once the watchdog has killed the VMM.
    pub fn watchdog_has_barked(&self) -> bool {
        self.watchdog.has_barked()
    }

    /// The VM continues in process `pid`.
    pub(super) fn watchdog_follows(&self, pid: i32) {
        self.watchdog.follow(pid);
    }

    /// Gives the watchdog's patience anew.
    pub(super) fn rewind_watchdog(&self) {
        self.watchdog.rewind();
    }

    /// Forgets what only grows: what was checked is not needed, and the evidence keeps the newest.
    pub(super) fn forget(&mut self) {
        self.qmp.forget(self.events_checked);
        self.bystander.forget();
        self.heard.clear();
        self.blackouts.clear();
        self.phases.clear();
        self.refusals.clear();
        self.revivals.clear();
        // The model is told that there was one.
        self.endings.drain(..self.endings.len().saturating_sub(1));
        // The first two and the last are told in the end.
        let last = self.memory_kib.len().saturating_sub(1);
        self.memory_kib.drain(last.min(2)..last);
        if let Some(old) = self.tried.checked_sub(STATES_KEPT) {
            // The earliest bursts have none.
            let _ = std::fs::remove_file(self.work.join(format!("state-{old}")));
            let _ =
                std::fs::remove_file(self.work.join(format!("state-{}", old.saturating_sub(1))));
            self.note_files();
        }
        self.evidence.bound();
    }

    /// Its own memory in KiB after boot, after the first update, and after the last.
    pub fn memory(&self) -> Vec<u64> {
        let all = &self.memory_kib;
        all.iter().take(2).chain(all.get(2..).and_then(<[u64]>::last)).copied().collect()
    }

    /// The error in `query-migrate`.
    pub fn migration_error(&mut self) -> Result<String, StepError> {
        let migrate: Value = self.qmp.query("query-migrate")?;
        Ok(migrate.get("error-desc").and_then(Value::as_str).unwrap_or_default().to_owned())
    }
}
