//! Starts the VMM of a session, and starts another in its place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cpr_qmp::run_state::RunState;

use super::{Session, look};
use crate::backend::{Channels, Launch};
use crate::check::Handover;
use crate::gateway::Gateway;
use crate::lab::restart;
use crate::observe::files::Files;
use crate::observe::outside::Outside;
use crate::observe::patience::patient;
use crate::observe::process::Executable;
use crate::observe::qmp::Qmp;
use crate::process::cgroup::Cgroup;
use crate::process::environment::EnvironmentError;
use crate::process::notify::Notify;
use crate::process::stalled::StalledPipe;
use crate::process::vm::{Start, Vm};
use crate::run::evidence::watchdog::Watchdog;
use crate::run::evidence::{Evidence, RAM, utf8};
use crate::run::session::clients::{EventListener, connect};
use crate::run::session::own_binary;
use crate::run::session::wrapped::{Under, executable, prefix};
use crate::run::update::command::{CommandBuilder, PATH_FOLDER};
use crate::run::{Options, StepError, linux};
use crate::scenario::Case;

impl<'a> Session<'a> {
    /// Starts the VMM and connects to it.
    pub fn boot(
        case: &'a Case,
        options: &'a Options,
        mut evidence: Evidence,
        work: &Path,
    ) -> Result<Self, Box<(Evidence, StepError)>> {
        match Self::start(case, options, &mut evidence, work, First::default()) {
            Ok(parts) => Ok(Self::assemble(case, options, evidence, work, parts)),
            Err(e) => Err(Box::new((evidence, e))),
        }
    }

    /// Starts the first VMM that this process sees of `case`.
    pub(super) fn start(
        case: &Case,
        options: &Options,
        evidence: &mut Evidence,
        work: &Path,
        first: First<'_>,
    ) -> Result<Parts, StepError> {
        let backend = &*options.backend;
        let mut files = match case.vm.is_linux() {
            true => evidence
                .linux_files(work, &linux::kernel(&case.vm).map_err(EnvironmentError::from)?)?,
            false => {
                let guest = guest_images::guest(&case.vm.guest).ok_or_else(|| {
                    StepError::Process(format!("there is no guest named {}", case.vm.guest))
                })?;
                evidence.files(work, guest.name, backend.image(guest))?
            }
        };
        if let Some(folder) = restart::kept().filter(|_| case.restarts_host()) {
            files.ram = utf8(&folder.join(RAM))?;
        }
        if case.vm.stalled.is_some() {
            // Not in the evidence folder: files there are read to their end, and this is a FIFO.
            files.log = work.join("log").display().to_string();
        }
        CommandBuilder { folder: work, backend, wrapper: &[] }.path_folder()?;
        let limit = patient(Duration::from_millis(case.deadline_ms));
        Self::launch_vmm(case, options, evidence, work, files, limit, first)
    }

    /// Starts a VMM once all its files are prepared.
    fn launch_vmm(
        case: &Case,
        options: &Options,
        evidence: &Evidence,
        work: &Path,
        files: Files,
        limit: Duration,
        First { incoming }: First<'_>,
    ) -> Result<Parts, StepError> {
        let launch = Launch { vm: &case.vm, seed: case.seed, name: &case.name, files: &files };
        let backend = &*options.backend;
        let arguments = match incoming {
            Some(channels) => backend.transfer_arguments(launch, channels),
            None => backend.arguments(launch),
        };
        let binary = backend.binary();
        evidence.timeline.say(
            "harness",
            format!("start {}{} {}", prefix(backend), binary.display(), arguments.join(" ")),
        );
        let started_from = match case.vm.own_binary {
            true => own_binary::copy(binary, work)?,
            false => binary.to_owned(),
        };
        let executable = executable(match case.vm.own_binary {
            true => &started_from,
            false => backend.executable(),
        })?;
        let stalled = case.vm.stalled;
        let stalled = stalled.map(|kind| StalledPipe::make(kind, Path::new(&files.log)));
        let stalled = stalled.transpose();
        let outside = Outside::look(work);
        let notify =
            Notify::bind(work).map_err(EnvironmentError::file("bind a socket in", work))?;
        let gateway = Gateway::prepare(backend, launch, incoming)
            .map_err(EnvironmentError::file("prepare to serve QMP on", &files.qmp))?;
        let mut vm = Vm::start(Start {
            wrapper: backend.wrapper(),
            binary: &started_from,
            arguments: &arguments,
            folder: work,
            path_folder: &work.join(PATH_FOLDER),
            console: &evidence.console(),
            keep: options.keep,
            seccomp: case.vm.seccomp,
            signals: case.vm.signals,
            cgroup: case.vm.memory_limit.map(|_| Cgroup::create()).transpose()?,
            notify: notify.path(),
            audit: options.audits.then(|| work.join(look::AUDIT)).as_deref(),
            stalled: stalled.map_err(EnvironmentError::file("create a pipe for", &files.log))?,
        })?;
        let watchdog =
            Watchdog::start(vm.pid(), limit, evidence.folder.clone(), evidence.timeline.clone())?;
        let gateway = gateway.map(|prepared| prepared.serve(vm.pid())).transpose();
        let gateway = gateway.map_err(EnvironmentError::file("serve QMP on", &files.qmp))?;
        let qmp = connect(&files.qmp, evidence, &mut vm, options, "")?;
        let under = Under::find(&mut vm, backend, &executable)?;
        let executable = under.executable().unwrap_or(&executable).clone();
        watchdog.follow(vm.pid());
        let theirs = backend.second_qmp(&files);
        let second_client = EventListener::new(connect(&theirs, evidence, &mut vm, options, "-2")?);
        Ok(Parts {
            files,
            started_from,
            executable,
            under,
            vm,
            gateway,
            qmp,
            second_client,
            watchdog,
            outside,
            notify,
        })
    }

    /// Starts a VMM in place of one that has exited, with the same arguments, paths and deadline.
    pub(in crate::run) fn boot_again(&mut self) -> Result<(), StepError> {
        let limit = patient(Duration::from_millis(self.case.deadline_ms));
        let limit = limit.saturating_sub(self.began.elapsed());
        let (case, options, evidence) = (self.case, self.options, &self.evidence);
        let files = self.files.clone();
        let first = First::default();
        let parts = Self::launch_vmm(case, options, evidence, &self.work, files, limit, first)?;
        self.startup = evidence.startup(&parts.files, &case.vm, &*options.backend);
        self.run_state = booted(case);
        self.boots = u32::from(!case.vm.paused);
        (self.executable, self.under, self.handed_over) = (parts.executable, parts.under, 0);
        (self.vm, self.qmp, self.second_client) = (parts.vm, parts.qmp, parts.second_client);
        (self.watchdog, self.outside) = (parts.watchdog, parts.outside);
        self.gateway = parts.gateway;
        (self.notify, self.handover) = (parts.notify, Handover::default());
        (self.seen, self.measuring, self.last_status) = (None, None, None);
        self.refused = None;
        self.events_checked = 0;
        if self.run_state.is_running() { self.await_boot(self.boots) } else { Ok(()) }
    }

    pub(super) fn assemble(
        case: &'a Case,
        options: &'a Options,
        evidence: Evidence,
        work: &Path,
        parts: Parts,
    ) -> Self {
        let Parts { files, started_from, executable, under, vm, qmp, second_client, .. } = parts;
        let (watchdog, outside, notify) = (parts.watchdog, parts.outside, parts.notify);
        let gateway = parts.gateway;
        Self {
            startup: evidence.startup(&files, &case.vm, &*options.backend),
            kvm: options.backend.uses_kvm() && Path::new("/dev/kvm").exists(),
            case,
            options,
            evidence,
            work: work.to_owned(),
            files,
            vm,
            gateway,
            qmp,
            second_client,
            run_state: booted(case),
            updated: executable.clone(),
            asked: Vec::new(),
            start_pends: false,
            handed_over: 0,
            last_seen_by_build: BTreeMap::new(),
            last_build: options.backend.binary().to_owned(),
            executable,
            under,
            started_from,
            limits: Vec::new(),
            earlier_state: None,
            queries: None,
            seen: None,
            events_checked: 0,
            heard: Vec::new(),
            endings: Vec::new(),
            last_ending: None,
            last_status: None,
            boots: u32::from(!case.vm.paused),
            updates: 0,
            tried: 0,
            slowest: Duration::ZERO,
            injection: None,
            measuring: None,
            serial: None,
            serial_next: Arc::default(),
            blackouts: Vec::new(),
            phases: Vec::new(),
            host_seen: Vec::new(),
            failed_updates: Vec::new(),
            calm: None,
            refused: None,
            refusals: Vec::new(),
            kills: Vec::new(),
            revivals: Vec::new(),
            left_by_new: Vec::new(),
            former_violations: Vec::new(),
            handover: Handover::default(),
            notify,
            outside,
            memory_kib: Vec::new(),
            watchdog,
            pace: None,
            began: Instant::now(),
        }
    }
}

/// Returns the run state of a VM that has just been started.
fn booted(case: &Case) -> RunState {
    if case.vm.paused { RunState::Prelaunch } else { RunState::Running }
}

/// What a VMM that no other one of this process precedes is to do.
#[derive(Clone, Copy, Default)]
pub(super) struct First<'a> {
    /// Where it loads the VM from; none: it boots the guest.
    pub(super) incoming: Option<&'a Channels>,
}

pub(super) struct Parts {
    files: Files,
    started_from: PathBuf,
    executable: Executable,
    under: Under,
    vm: Vm,
    gateway: Option<Gateway>,
    qmp: Qmp,
    second_client: EventListener,
    watchdog: Watchdog,
    outside: Outside,
    notify: Notify,
}
