//! A VM under test: the process, the conversation, and what is expected of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use cpr_qmp::message::Event;
use cpr_qmp::run_state::RunState;
use serde_json::Value;

use super::blackout::Measurement;
use super::cgroup::Cgroup;
use super::clients::{Bystander, connect};
use super::command::{PATH_FOLDER, Workshop};
use super::evidence::Evidence;
use super::failure::StepError;
use super::outside::Outside;
use super::serial::SerialClient;
use super::soak::Pace;
use super::verdict::{FailedUpdate, Heard, HostSeen, Kill, Observed, Refusal};
use super::vm::{Start, Vm};
use super::watchdog::Watchdog;
use super::{EnvironmentError, Options, limit, own_binary, timeline};
use crate::backend::{Backend, Files, Launch};
use crate::check::gone::{Cause, Gone};
use crate::check::killed::Killed;
use crate::check::startup::Startup;
use crate::check::{self, Action, Finding, Scene, damage, gone, killed, pid, progress};
use crate::observe::fds::FdTable;
use crate::observe::observation::{Observation, Subject};
use crate::observe::phases::{self, UpdatePhases};
use crate::observe::process::Executable;
use crate::observe::qmp::{self, Qmp};
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
    /// Updates that succeeded since it was started.
    handed_over: u32,
    /// The descriptors of each build when it was last looked at, by the build's file.
    fds_of: BTreeMap<PathBuf, FdTable>,
    /// The file of the build at the last look.
    looked_at: PathBuf,
    /// Limits that were changed, as they were.
    pub limits: Vec<limit::Saved>,
    /// The state file of the last update that succeeded.
    pub earlier_state: Option<String>,
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
    /// What the guest noticed of updates that were refused.
    pub refusals: Vec<Refusal>,
    /// Updates cut off by SIGKILL.
    pub kills: Vec<Kill>,
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
    /// Starts the VMM and connects to it.
    pub fn boot(
        case: &'a Case,
        options: &'a Options,
        mut evidence: Evidence,
        work: &Path,
    ) -> Result<Self, Box<(Evidence, StepError)>> {
        match Self::start(case, options, &mut evidence, work) {
            Ok(parts) => Ok(Self::assemble(case, options, evidence, work, parts)),
            Err(e) => Err(Box::new((evidence, e))),
        }
    }

    fn start(
        case: &Case,
        options: &Options,
        evidence: &mut Evidence,
        work: &Path,
    ) -> Result<Parts, StepError> {
        let guest = guest_images::guest(&case.vm.guest).ok_or_else(|| {
            StepError::Process(format!("there is no guest named {}", case.vm.guest))
        })?;
        let backend = &*options.backend;
        let files = evidence.files(work, guest.name, backend.image(guest))?;
        Workshop { folder: work, backend }.path_folder()?;
        let limit = Duration::from_millis(case.deadline_ms);
        Self::launch_vmm(case, options, evidence, work, files, limit)
    }

    /// Starts a VMM where everything is prepared.
    fn launch_vmm(
        case: &Case,
        options: &Options,
        evidence: &Evidence,
        work: &Path,
        files: Files,
        limit: Duration,
    ) -> Result<Parts, StepError> {
        let launch = Launch { vm: &case.vm, seed: case.seed, name: &case.name, files: &files };
        let backend = &*options.backend;
        let arguments = backend.arguments(launch);
        let binary = backend.binary();
        evidence
            .timeline
            .say("harness", format!("start {} {}", binary.display(), arguments.join(" ")));
        let started_from = match case.vm.own_binary {
            true => own_binary::copy(binary, work)?,
            false => binary.to_owned(),
        };
        let executable = executable(match case.vm.own_binary {
            true => &started_from,
            false => backend.executable(),
        })?;
        let outside = Outside::look(work);
        let mut vm = Vm::start(Start {
            binary: &started_from,
            arguments: &arguments,
            folder: work,
            path_folder: &work.join(PATH_FOLDER),
            console: &evidence.console(),
            keep: options.keep,
            seccomp: case.vm.seccomp,
            cgroup: case.vm.memory_limit.map(|_| Cgroup::create()).transpose()?,
        })?;
        let watchdog =
            Watchdog::start(vm.pid(), limit, evidence.folder.clone(), evidence.timeline.clone())?;
        let qmp = connect(&files.qmp, evidence, &mut vm, options, "")?;
        let theirs = backend.second_qmp(&files);
        let bystander = Bystander::new(connect(&theirs, evidence, &mut vm, options, "-2")?);
        Ok(Parts { files, started_from, executable, vm, qmp, bystander, watchdog, outside })
    }

    /// Starts a VMM in the place of one that is gone: the same arguments, paths and deadline.
    pub(super) fn boot_again(&mut self) -> Result<(), StepError> {
        let limit = Duration::from_millis(self.case.deadline_ms);
        let limit = limit.saturating_sub(self.began.elapsed());
        let (case, options, evidence) = (self.case, self.options, &self.evidence);
        let files = self.files.clone();
        let parts = Self::launch_vmm(case, options, evidence, &self.work, files, limit)?;
        self.startup = evidence.startup(&parts.files);
        self.run_state = booted(case);
        self.boots = u32::from(!case.vm.paused);
        (self.executable, self.handed_over) = (parts.executable, 0);
        (self.vm, self.qmp, self.bystander) = (parts.vm, parts.qmp, parts.bystander);
        (self.watchdog, self.outside) = (parts.watchdog, parts.outside);
        (self.seen, self.measuring, self.last_status) = (None, None, None);
        self.events_checked = 0;
        if self.run_state.is_running() { self.await_boot(self.boots) } else { Ok(()) }
    }

    fn assemble(
        case: &'a Case,
        options: &'a Options,
        evidence: Evidence,
        work: &Path,
        parts: Parts,
    ) -> Self {
        let Parts { files, started_from, executable, vm, qmp, bystander, watchdog, outside } =
            parts;
        Self {
            startup: evidence.startup(&files),
            kvm: options.backend.uses_kvm() && Path::new("/dev/kvm").exists(),
            case,
            options,
            evidence,
            work: work.to_owned(),
            files,
            vm,
            qmp,
            bystander,
            run_state: booted(case),
            updated: executable.clone(),
            handed_over: 0,
            fds_of: BTreeMap::new(),
            looked_at: options.backend.binary().to_owned(),
            executable,
            started_from,
            limits: Vec::new(),
            earlier_state: None,
            seen: None,
            events_checked: 0,
            heard: Vec::new(),
            endings: Vec::new(),
            last_status: None,
            boots: u32::from(!case.vm.paused),
            updates: 0,
            tried: 0,
            injection: None,
            measuring: None,
            serial: None,
            serial_next: Arc::default(),
            blackouts: Vec::new(),
            phases: Vec::new(),
            host_seen: Vec::new(),
            failed_updates: Vec::new(),
            refusals: Vec::new(),
            kills: Vec::new(),
            outside,
            memory_kib: Vec::new(),
            watchdog,
            pace: None,
            began: Instant::now(),
        }
    }

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
        }
        self.evidence.bound();
    }

    /// Looks at the VMM.
    pub fn observe(&mut self) -> Result<Observation, StepError> {
        let vm = &self.case.vm;
        let subject = Subject {
            pid: self.vm.pid(),
            ram_bytes: vm.memory.0,
            ram_shared: vm.share,
            stopped: !self.run_state.is_running(),
        };
        Ok(Observation::take(subject, &mut self.qmp)?)
    }

    /// After a step: looks at the VMM and runs every check.
    pub fn check(&mut self, action: &Action, ran_before: bool) -> Result<(), StepError> {
        self.check_process()?;
        self.check_serial()?;
        self.settle_events(action, ran_before);
        let before = self.seen.take();
        let after = match self.observe() {
            Ok(after) => after,
            Err(e) => {
                self.seen = before;
                return Err(e);
            }
        };
        // After the observation: its QMP answers come behind every event of the step.
        let events = self.take_events();
        let over_exec = self.options.backend.dialect().over_exec;
        let common = |events: &[Event]| check::clients::common(action, over_exec, events);
        let theirs = self.bystander.hear(&events, common, self.options.patience.events);
        let log = self.evidence.vmm_log();
        let build = self.build();
        let fds_then = match build == self.looked_at {
            true => before.as_ref().map(|before| &before.fds),
            false => self.fds_of.get(build),
        };
        let findings = check::all(&Scene {
            vm: &self.case.vm,
            dialect: self.options.backend.dialect(),
            kvm: self.kvm,
            executable: &self.executable,
            startup: &self.startup,
            patience: self.options.patience,
            boots: self.boots,
            action,
            ran_before,
            run_state: self.run_state,
            events: &events,
            bystander: theirs.as_deref().map_err(String::as_str),
            last_status: self.last_status.as_deref(),
            log: &|| log.since(),
            fds_then,
            before: before.as_ref(),
            after: &after,
        });
        let logged = log.since();
        self.evidence.collect();
        let measured = self.measuring.take().filter(|_| findings.is_empty() && action.updated());
        let blackout = measured.and_then(|measuring| measuring.end(&after.page));
        self.endings.extend(action.ending().map(|ending| ending.name().to_owned()));
        if action.updated() {
            self.note_phases(&logged, blackout);
        }
        self.blackouts.extend(blackout);
        if *action == Action::Boot || action.updated() {
            self.memory_kib.push(after.memory_kib);
        }
        if !findings.is_empty()
            && let Some(before) = &before
        {
            self.evidence.observation("before", before)?;
        }
        self.fds_of.insert(build.to_owned(), after.fds.clone());
        self.looked_at = build.to_owned();
        self.seen = Some(after);
        if findings.is_empty() { Ok(()) } else { Err(StepError::Checks(findings)) }
    }

    /// Notes the phases of the updates in `logged`, of which one had this blackout.
    fn note_phases(&mut self, logged: &str, blackout: Option<Duration>) {
        let lines = logged.lines().filter_map(|line| Some((timeline::stamped(line)?, line)));
        let mut phases = phases::updates(lines);
        if let Some(blackout) = blackout {
            self.evidence.timeline.say("harness", phases::blackout_line(blackout));
            if let [only] = phases.as_mut_slice() {
                only.set_blackout(blackout);
            }
        }
        self.phases.extend(phases);
    }

    /// Its own memory in KiB after boot, after the first update, and after the last.
    pub fn memory(&self) -> Vec<u64> {
        let all = &self.memory_kib;
        all.iter().take(2).chain(all.get(2..).and_then(<[u64]>::last)).copied().collect()
    }

    /// The check that comes before all others.
    pub fn check_process(&mut self) -> Result<(), StepError> {
        let console = std::fs::read_to_string(self.evidence.console()).unwrap_or_default();
        let ended = self.vm.ended_or_ending();
        pid::check(&self.vm.started, ended, &console)
            .map_err(|message| StepError::Checks(vec![Finding::new(pid::NAME, message)]))
    }

    /// What the guest has to say about a step that went wrong; `awaited`: it was waited for.
    pub fn look_at_guest(&self, awaited: bool) -> Option<Finding> {
        let page = &self.seen.as_ref()?.page;
        let log = self.evidence.vmm_log();
        if let Err(message) = damage::look(page, self.boots, &|| log.since()) {
            return Some(Finding::new(damage::CHECK.name, message));
        }
        if !(awaited && self.run_state.is_running()) {
            return None;
        }
        let beat = progress::goes_on(page, self.case.vm.cpus, self.options.patience.beat);
        beat.err().map(|message| Finding::new(progress::CHECK.name, message))
    }

    /// The checks that take the place of all others when the VMM was told to end.
    pub fn check_gone(&mut self, ended: ExitStatus, cause: Cause) -> Result<(), StepError> {
        let events = self.take_events();
        let finding =
            |name| move |message: String| StepError::Checks(vec![Finding::new(name, message)]);
        let Files { qmp, pid_file, .. } = &self.files;
        let (socket, pid_file) = (Path::new(qmp), Path::new(pid_file));
        gone::check(&Gone { ended, cause, socket, pid_file, events: &events })
            .map_err(finding(gone::NAME))?;
        killed::check(&self.killed(cause.name())).map_err(finding(killed::NAME))
    }

    /// The VMM, which has ended after `by`.
    pub(super) fn killed<'b>(&'b self, by: &'b str) -> Killed<'b> {
        Killed {
            by,
            pid: self.vm.pid(),
            work: &self.work,
            socket: Path::new(&self.files.qmp),
            outside: &self.outside,
            limit: self.options.patience.end,
        }
    }

    /// Events come when they come; the last ones of a step are awaited for a while.
    fn settle_events(&self, action: &Action, ran_before: bool) {
        let from = self.events_checked;
        let over_exec = self.options.backend.dialect().over_exec;
        // What is missing then is for the check `events` to tell.
        let _ = self.qmp.await_events(from, self.options.patience.events, |arrived| {
            let events: Vec<Event> = arrived.iter().map(|a| a.event.clone()).collect();
            check::events::complete(action, ran_before, over_exec, &events)
        });
    }

    /// The events that were not checked yet.
    fn take_events(&mut self) -> Vec<Event> {
        let arrived = self.qmp.events_from(self.events_checked);
        self.events_checked += arrived.len();
        let events: Vec<Event> = arrived.into_iter().map(|a| a.event).collect();
        self.heard.extend(events.iter().map(qmp::label));
        let newest = events.iter().rfind(|e| e.event == "MIGRATION");
        let status = newest.and_then(|e| e.data.as_ref()?.get("status")?.as_str());
        if let Some(status) = status {
            self.last_status = Some(status.to_owned());
        }
        events
    }

    /// The events of the step that has just ended, if it had any.
    pub(super) fn heard(&mut self, step: &str, failed: bool) -> Option<Heard> {
        if failed {
            // No later check is to miss them.
            self.take_events();
        }
        let events = std::mem::take(&mut self.heard);
        (!events.is_empty()).then(|| Heard { step: step.to_owned(), events })
    }

    /// What was seen after the step that has just ended.
    pub(super) fn observed(&mut self, step: &str) -> Option<Observed> {
        let seen = self.seen.as_ref()?;
        Some(Observed {
            step: step.to_owned(),
            run_state: check::run_state::name(&seen.status.status),
            migration: seen.migrate.get("status").and_then(Value::as_str).map(str::to_owned),
            endings: std::mem::take(&mut self.endings),
        })
    }

    /// The error in `query-migrate`.
    pub fn migration_error(&mut self) -> Result<String, StepError> {
        let migrate: Value = self.qmp.query("query-migrate")?;
        Ok(migrate.get("error-desc").and_then(Value::as_str).unwrap_or_default().to_owned())
    }
}

/// The run state of a VM that has just been started.
fn booted(case: &Case) -> RunState {
    if case.vm.paused { RunState::Prelaunch } else { RunState::Running }
}

/// What a process that runs the file at `path` executes.
pub(super) fn executable(path: &Path) -> Result<Executable, EnvironmentError> {
    let spawn = |source| EnvironmentError::Spawn { path: path.to_owned(), source };
    Executable::at(path).map_err(|e| spawn(std::io::Error::other(e)))
}

struct Parts {
    files: Files,
    started_from: PathBuf,
    executable: Executable,
    vm: Vm,
    qmp: Qmp,
    bystander: Bystander,
    watchdog: Watchdog,
    outside: Outside,
}
