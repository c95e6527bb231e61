//! A VM under test: its process, its QMP connections, and the expected state.

mod boot_soak;
pub mod clients;
mod ending;
pub mod failed_update;
pub mod host_restart;
mod injected;
pub mod interrupt;
pub mod kill_in_update;
pub mod kill_vmm;
mod launch;
pub mod limit;
mod look;
pub mod measured;
pub mod own_binary;
pub mod refusal;
mod restart;
pub mod revival;
pub mod soak;
pub mod steps;
pub mod successor;
pub mod transfer;
pub mod update;
mod wrapped;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use cpr_qmp::run_state::RunState;
use serde_json::Value;

pub(super) use look::fits_protocol;
pub(super) use wrapped::executable;

use super::evidence::Evidence;
use super::failure::StepError;
use crate::backend::{Backend, Launch};
use crate::check::Handover;
use crate::check::gaps::Refusal;
use crate::coverage;
use crate::gateway::Gateway;
use crate::observe::facts::Facts;
use crate::observe::fds::FdTable;
use crate::observe::files::Files;
use crate::observe::mailbox::CLOCKS;
use crate::observe::observation::Observation;
use crate::observe::outside::Outside;
use crate::observe::phases::UpdatePhases;
use crate::observe::process::Executable;
use crate::observe::qmp::Qmp;
use crate::observe::queries::Queries;
use crate::observe::startup::Startup;
use crate::process::notify::Notify;
use crate::process::vm::Vm;
use crate::run::Options;
use crate::run::evidence::watchdog::Watchdog;
use crate::run::measure::blackout::Measurement;
use crate::run::peer::serial::SerialClient;
use crate::run::session::clients::EventListener;
use crate::run::session::soak::Pace;
use crate::run::session::wrapped::Under;
use crate::run::verdict::{ClockStep, FailedUpdate, HostSeen, Kill, Revived};
use crate::scenario::{Case, Inject};

/// How many of the newest updates' state files a soak keeps.
const STATES_KEPT: u32 = 4;

/// The VM of one case: its handles, expected state and records.
pub struct Session<'a> {
    /// The case.
    pub case: &'a Case,
    /// The run it belongs to.
    pub options: &'a Options,
    /// The evidence folder.
    pub evidence: Evidence,
    /// A folder with a short path, for the sockets and other files of the case.
    pub work: PathBuf,
    /// The VM's files.
    pub files: Files,
    /// The VMM's process.
    pub vm: Vm,
    /// What serves QMP for a VMM that does not.
    pub(super) gateway: Option<Gateway>,
    /// The QMP connection that sends commands.
    pub qmp: Qmp,
    /// A second QMP client, which only listens.
    pub(super) second_client: EventListener,
    /// The expected run state.
    pub run_state: RunState,
    /// The file that the VMM must be executing.
    pub executable: Executable,
    /// What a wrapper makes of the VMM.
    under: Under,
    /// The path that the VMM was started from.
    pub started_from: PathBuf,
    /// The file that the VMM executes if the last prepared update succeeds.
    pub(super) updated: Executable,
    /// The arguments in the newest update command.
    pub(super) asked: Vec<String>,
    /// Successful updates since the VMM was started.
    handed_over: u32,
    /// The descriptors and facts of each build when it was last observed, by the build's path.
    last_seen_by_build: BTreeMap<PathBuf, (FdTable, Facts)>,
    /// The path of the build at the last observation.
    last_build: PathBuf,
    /// The original values of the limits that were changed.
    pub limits: Vec<limit::Saved>,
    /// A vCPU was told to start, and the guest has not run since.
    pub(super) start_pends: bool,
    /// The state file of the last update that succeeded.
    pub earlier_state: Option<String>,
    /// The additional QMP queries of each observation, once known.
    queries: Option<Queries>,
    /// The newest observation.
    pub seen: Option<Observation>,
    /// The number of events that were checked already.
    pub events_checked: usize,
    /// The checked events of this step.
    heard: Vec<String>,
    /// How the updates of this step ended.
    endings: Vec<String>,
    /// How the last update ended.
    last_ending: Option<coverage::endings::Ending>,
    /// The status in the newest `MIGRATION` event.
    pub last_status: Option<String>,
    /// How often the guest must have booted.
    pub boots: u32,
    /// Updates that succeeded.
    pub updates: u32,
    /// Updates that were attempted.
    pub tried: u32,
    /// The longest that an update of this VM took to complete.
    pub slowest: Duration,
    /// The fault to inject into the next update.
    pub injection: Option<Inject>,
    /// The blackout measurement in progress.
    pub measuring: Option<Measurement>,
    /// The serial port's client.
    pub serial: Option<SerialClient>,
    /// The number of the next line that a client of the serial port sends.
    pub serial_next: Arc<AtomicU32>,
    /// Blackouts measured.
    pub blackouts: Vec<Duration>,
    /// The phases of successful updates, where the VMM logs them.
    pub phases: Vec<UpdatePhases>,
    /// What the host measured of updates that it watched.
    pub host_seen: Vec<HostSeen>,
    /// The errors of updates that did not succeed.
    pub failed_updates: Vec<FailedUpdate>,
    /// The largest gap between heartbeats in calm times, once measured.
    pub(super) calm: Option<Duration>,
    /// What the guest noticed of a refused update, until the check judges it.
    pub(super) refused: Option<Refusal>,
    /// What the guest noticed of refused updates.
    pub refusals: Vec<Refusal>,
    /// Kills of the VMM during updates.
    pub kills: Vec<Kill>,
    /// Deaths of the VMM's process that the VM survived.
    pub revivals: Vec<Revived>,
    /// The files that a new VMM left behind which ended by itself without taking over.
    pub(super) left_by_new: Vec<PathBuf>,
    /// Protocol violations on the connections to former VMMs.
    pub(super) former_violations: Vec<String>,
    /// Whether the VM has moved to another process since the last observation.
    pub(super) handover: Handover,
    /// The socket on which the VMM notifies its service manager.
    pub(super) notify: Notify,
    /// The files outside the case's folder before the VMM was started.
    pub(super) outside: Outside,
    /// The VMM's own memory in KiB, after boot and after each update.
    memory_kib: Vec<u64>,
    startup: Startup,
    watchdog: Watchdog,
    /// Decides how long a soak lasts; without it the number of its updates does.
    pub(super) pace: Option<&'a dyn Pace>,
    kvm: bool,
    began: Instant,
}

impl<'a> Session<'a> {
    /// Returns the build that the next update goes to.
    pub(super) fn next_build(&self) -> &'a dyn Backend {
        let backend = &*self.options.backend;
        backend.next(self.handed_over).unwrap_or(backend)
    }

    /// Returns the path of the build that runs now.
    fn build(&self) -> &'a Path {
        let backend = &*self.options.backend;
        let last = self.handed_over.checked_sub(1);
        last.and_then(|done| backend.next(done)).unwrap_or(backend).binary()
    }

    /// Returns what to launch, for the arguments of an update.
    pub fn launch(&self) -> Launch<'_> {
        let case = self.case;
        Launch { vm: &case.vm, seed: case.seed, name: &case.name, files: &self.files }
    }

    /// Records a successful update with its state file.
    pub fn note_update(&mut self, state: String) {
        self.note_transfer();
        self.earlier_state = Some(state);
    }

    /// Records a successful update without a state file.
    pub(super) fn note_transfer(&mut self) {
        self.updates += 1;
        self.handed_over += 1;
        self.executable = self.updated.clone();
    }

    /// Returns true once the watchdog has expired and killed the VMM.
    pub fn watchdog_expired(&self) -> bool {
        self.watchdog.has_expired()
    }

    /// Tells the watchdog that the VM continues in process `pid`.
    pub(super) fn watchdog_follows(&self, pid: i32) {
        self.watchdog.follow(pid);
    }

    /// Makes the watchdog kill process group `group` too.
    pub(super) fn watchdog_also_ends(&self, group: i32) {
        self.watchdog.also_end(group);
    }

    /// Makes the watchdog leave process group `group` alone, which has ended.
    pub(super) fn watchdog_no_longer_ends(&self, group: i32) {
        self.watchdog.no_longer_end(group);
    }

    /// Restarts the watchdog's time limit.
    pub(super) fn rewind_watchdog(&self) {
        self.watchdog.rewind();
    }

    /// Drops records that would grow without bound: checked ones are not needed any more, and the
    /// evidence keeps the newest.
    pub(super) fn forget(&mut self) {
        self.qmp.forget(self.events_checked);
        self.second_client.forget();
        self.heard.clear();
        self.blackouts.clear();
        self.phases.clear();
        self.refusals.clear();
        self.revivals.clear();
        // The model needs one, to know that there was an update.
        self.endings.drain(..self.endings.len().saturating_sub(1));
        // The report contains the first two and the last.
        let last = self.memory_kib.len().saturating_sub(1);
        self.memory_kib.drain(last.min(2)..last);
        if let Some(old) = self.tried.checked_sub(STATES_KEPT) {
            // Some of these files do not exist.
            let _ = std::fs::remove_file(self.work.join(format!("state-{old}")));
            let _ =
                std::fs::remove_file(self.work.join(format!("state-{}", old.saturating_sub(1))));
            self.note_files();
        }
        self.evidence.bound();
    }

    /// Returns the VMM's own memory in KiB after boot, after the first update and after the last.
    pub fn memory(&self) -> Vec<u64> {
        let all = &self.memory_kib;
        all.iter().take(2).chain(all.get(2..).and_then(<[u64]>::last)).copied().collect()
    }

    /// Returns the largest steps of the clocks that a Linux guest has last reported.
    pub fn clock_steps(&self) -> Vec<ClockStep> {
        let Some(seen) = self.seen.as_ref().filter(|_| self.case.vm.is_linux()) else {
            return Vec::new();
        };
        let steps = CLOCKS.into_iter().zip(seen.mailbox.clock_steps);
        let step = |(clock, ns): (&str, u64)| ClockStep {
            clock: clock.to_owned(),
            largest: Duration::from_nanos(ns),
        };
        steps.map(step).collect()
    }

    /// Returns the error in `query-migrate`.
    pub fn migration_error(&mut self) -> Result<String, StepError> {
        let migrate: Value = self.qmp.query("query-migrate")?;
        Ok(migrate.get("error-desc").and_then(Value::as_str).unwrap_or_default().to_owned())
    }
}
