//! Observes the VM of a session after a step, and checks the observation.

use std::cell::RefCell;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use cpr_qmp::message::Event;
use serde_json::Value;

use super::{Session, ending};
use crate::backend::AcrossExec;
use crate::check::gaps::Gaps;
use crate::check::gone::{self, Cause, Gone};
use crate::check::killed::{self, Killed};
use crate::check::{
    self, Action, Finding, Handover, Scene, Settled, blackout, damage, pid, progress,
};
use crate::coverage::{self, endings::Ended};
use crate::model::judge::Observed;
use crate::observe::observation::{Observation, Subject};
use crate::observe::patience;
use crate::observe::queries::Queries;
use crate::observe::{file_facts, phases, qmp};
use crate::run::StepError;
use crate::run::evidence::timeline;
use crate::run::verdict::Heard;

/// The name of an audit's files in the folder of the case, without extension.
pub(super) const AUDIT: &str = "audit";

impl Session<'_> {
    /// Observes the VMM.
    pub fn observe(&mut self) -> Result<Observation, StepError> {
        let vm = &self.case.vm;
        let audit = self.work.join(AUDIT);
        let subject = Subject {
            pid: self.vm.pid(),
            ram_bytes: vm.memory.0,
            ram_shared: vm.share,
            stopped: !self.run_state.is_running(),
            not_audited: self.not_audited(),
            audit: &audit,
            work: &self.work,
            files: &self.files,
        };
        let queries = match self.options.backend.dialect().across_exec {
            // This VMM has scores of queries and rebuilds the state that they report.
            AcrossExec::Recreated => None,
            _ if self.queries.is_some() => self.queries.as_ref(),
            _ => Some(&*self.queries.insert(Queries::of(&mut self.qmp)?)),
        };
        Ok(Observation::take(subject, &mut self.qmp, queries)?)
    }

    /// Records the files that the harness created for a step, so that they do not count as the
    /// VMM's.
    pub(in crate::run) fn note_files(&mut self) {
        if let Some(seen) = &mut self.seen {
            seen.files = file_facts::of_vm(&self.work, &self.files);
        }
    }

    /// Observes the VMM after a step and runs every check.
    pub fn check(&mut self, action: &Action, ran_before: bool) -> Result<(), StepError> {
        self.check_process()?;
        self.check_serial()?;
        let handover = std::mem::take(&mut self.handover);
        self.settle_events(action, &handover, ran_before);
        let before = self.seen.take();
        let mut after = match self.observe() {
            Ok(after) => after,
            Err(e) => {
                self.seen = before;
                return Err(e);
            }
        };
        // After the observation, whose QMP answers follow every event of the step.
        let events = self.take_events();
        if let Some(how) = ending::of(action, &handover, &events) {
            let after = self.last_ending.replace(how);
            coverage::ended(Ended { how, run_state: self.run_state, after });
        }
        let across_exec = self.options.backend.dialect().across_exec;
        let common =
            |events: &[Event]| check::clients::common(action, &handover, across_exec, events);
        let theirs = self.second_client.hear(&events, common, self.options.patience.events);
        let conversation = self.conversation();
        let log = self.evidence.vmm_log();
        let build = self.build();
        let then = match build == self.last_build {
            true => before.as_ref().map(|before| (&before.fds, &before.facts)),
            false => self.last_seen_by_build.get(build).map(|(fds, facts)| (fds, facts)),
        };
        let measuring = self.measuring.take();
        let measured = || measuring.as_ref().and_then(|measuring| measuring.end(&after.page));
        let refusal = self.refused.take();
        let left_by_new = std::mem::take(&mut self.left_by_new);
        let settled = RefCell::default();
        let findings = check::all(&Scene {
            vm: &self.case.vm,
            vmm: self.options.backend.name(),
            dialect: self.options.backend.dialect(),
            audits: self.options.audits,
            kvm: self.kvm,
            executable: &self.executable,
            arguments: &self.asked,
            startup: &self.startup,
            patience: self.options.patience,
            boots: self.boots,
            action,
            handover: &handover,
            work: &self.work,
            wrapper: self.vm.wrapper(),
            wraps_itself: self.under.executable().is_some(),
            ran_before,
            run_state: self.run_state,
            events: &events,
            conversation: &conversation,
            second_client: theirs.as_deref().map_err(String::as_str),
            last_status: self.last_status.as_deref(),
            gaps: Gaps {
                blackout: &measured,
                refusal: refusal.as_ref(),
                calm: self.calm.unwrap_or_default(),
                asked: self.case.max_blackout_ms.map(Duration::from_millis),
            },
            log: &|| log.since(),
            fds_of_build: then.map(|(fds, _)| fds),
            facts_of_build: then.map(|(_, facts)| facts),
            files: &self.files,
            left_by_new: &left_by_new,
            settled: &settled,
            other_build: build != self.last_build,
            before: before.as_ref(),
            after: &after,
        });
        let Settled { fds, process, files } = settled.into_inner();
        after.fds = fds.unwrap_or(after.fds);
        after.facts = process.unwrap_or(after.facts);
        after.files = files.unwrap_or(after.files);
        if handover.revival().is_some() {
            self.startup =
                self.evidence.startup(&self.files, &self.case.vm, &*self.options.backend);
        }
        let logged = log.since();
        self.evidence.collect();
        let later = handover.transfer().is_some_and(|transfer| transfer.later);
        let judged =
            action.updated() && !later && findings.iter().all(|f| f.check == blackout::CHECK.name);
        let blackout = judged.then(measured).flatten();
        // In an emulated host and under a wrapper nothing is measured.
        let measures = patience::measures();
        self.refusals.extend(refusal.filter(|_| measures));
        self.endings.extend(action.ending().map(|ending| ending.name().to_owned()));
        if action.updated() && measures {
            self.note_phases(&logged, blackout);
        }
        self.blackouts.extend(blackout.filter(|_| measures));
        if *action == Action::Boot || action.updated() {
            self.memory_kib.push(after.memory_kib);
        }
        if !findings.is_empty()
            && let Some(before) = &before
        {
            self.evidence.observation("before", before)?;
        }
        self.last_seen_by_build.insert(build.to_owned(), (after.fds.clone(), after.facts.clone()));
        self.last_build = build.to_owned();
        self.seen = Some(after);
        if findings.is_empty() { Ok(()) } else { Err(StepError::Checks(findings)) }
    }

    /// Records the phases of the updates in `logged`, one of which had this `blackout`.
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

    /// Checks that the VMM's process is the one it was and has not ended; runs before all other
    /// checks.
    pub fn check_process(&mut self) -> Result<(), StepError> {
        let console = std::fs::read_to_string(self.evidence.console()).unwrap_or_default();
        let ended = self.vm.ended_or_ending();
        pid::check(&self.vm.started, ended, &console)
            .map_err(|message| StepError::Checks(vec![Finding::new(pid::NAME, message)]))
    }

    /// Returns what the guest shows about a failed step; `awaited` means that the step waited for
    /// the guest.
    pub fn look_at_guest(&self, awaited: bool) -> Option<Finding> {
        let page = &self.seen.as_ref()?.page;
        let log = self.evidence.vmm_log();
        if let Err(message) = damage::judge(page, self.boots, &|| log.since()) {
            return Some(Finding::new(damage::CHECK.name, message));
        }
        if !(awaited && self.run_state.is_running()) {
            return None;
        }
        let beat = progress::continues(page, self.case.vm.cpus, self.options.patience.beat);
        beat.err().map(|message| Finding::new(progress::CHECK.name, message))
    }

    /// Runs the checks that replace all others once the VMM was told to end.
    pub fn check_gone(&mut self, ended: ExitStatus, cause: Cause) -> Result<(), StepError> {
        let events = self.take_events();
        let finding =
            |name| move |message: String| StepError::Checks(vec![Finding::new(name, message)]);
        let control = self.options.backend.control_socket(&self.files);
        let sockets = self.files.sockets(&self.case.vm).into_iter();
        let sockets: Vec<&str> = sockets.chain(control.as_deref()).collect();
        let pid_file = Path::new(&self.files.pid_file);
        gone::check(&Gone { ended, cause, sockets: &sockets, pid_file, events: &events })
            .map_err(finding(gone::NAME))?;
        killed::check(&self.killed(cause.name())).map_err(finding(killed::NAME))?;
        self.check_conversation()
    }

    /// Returns the protocol violations on the VMM's QMP connections.
    pub(super) fn conversation(&self) -> Vec<String> {
        let former = self.former_violations.clone();
        [former, self.qmp.violations(), self.second_client.violations()].concat()
    }

    /// Checks for protocol violations once the VMM has ended.
    pub(in crate::run) fn check_conversation(&self) -> Result<(), StepError> {
        fits_protocol(&self.conversation())
    }

    /// Describes the VMM that has ended after `by`, for the check `killed`.
    pub(in crate::run) fn killed<'b>(&'b self, by: &'b str) -> Killed<'b> {
        Killed {
            by,
            pid: self.vm.pid(),
            group: self.vm.group(),
            work: &self.work,
            socket: Path::new(&self.files.qmp),
            outside: &self.outside,
            limit: self.options.patience.end,
        }
    }

    /// Waits a while for the last events of a step, which may be delayed.
    fn settle_events(&self, action: &Action, handover: &Handover, ran_before: bool) {
        let from = self.events_checked;
        let across_exec = self.options.backend.dialect().across_exec;
        // The check `events` reports what is missing after that.
        let _ = self.qmp.await_events(from, self.options.patience.events, |arrived| {
            let events: Vec<Event> = arrived.iter().map(|a| a.event.clone()).collect();
            check::events::complete(action, handover, ran_before, across_exec, &events)
        });
    }

    /// Waits for the events of an action without an observation, on both connections.
    pub(super) fn acknowledge(&mut self, action: &Action, ran: bool) -> Result<(), StepError> {
        let handover = Handover::default();
        self.settle_events(action, &handover, ran);
        let across_exec = self.options.backend.dialect().across_exec;
        let events = self.take_events();
        let wrong = |check: &str, why: String| StepError::Checks(vec![Finding::new(check, why)]);
        if !check::events::complete(action, &handover, ran, across_exec, &events) {
            let labels: Vec<String> = events.iter().map(qmp::label).collect();
            let why = format!("the events of {action:?} are not complete: {labels:?}");
            return Err(wrong(check::events::CHECK.name, why));
        }
        let common =
            |events: &[Event]| check::clients::common(action, &handover, across_exec, events);
        let theirs = self.second_client.hear(&events, common, self.options.patience.events);
        theirs.map(drop).map_err(|why| wrong(check::clients::CHECK.name, why))
    }

    /// Takes the events that were not checked yet.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
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

    /// Takes the events of the step that has just ended, if it had any.
    pub(in crate::run) fn heard(&mut self, step: &str, failed: bool) -> Option<Heard> {
        if failed {
            // A failed step may have left them unchecked.
            self.take_events();
        }
        let events = std::mem::take(&mut self.heard);
        (!events.is_empty()).then(|| Heard { step: step.to_owned(), events })
    }

    /// Returns what was observed after the step that has just ended.
    pub(in crate::run) fn observed(&mut self, step: &str) -> Option<Observed> {
        let seen = self.seen.as_ref()?;
        Some(Observed {
            step: step.to_owned(),
            run_state: check::run_state::name(&seen.status.status),
            migration: seen.migrate.get("status").and_then(Value::as_str).map(str::to_owned),
            endings: std::mem::take(&mut self.endings),
        })
    }
}

/// Runs the check `qmp` outside of [`Session::check`], on the violations `wrong`.
pub(in crate::run) fn fits_protocol(wrong: &[String]) -> Result<(), StepError> {
    if wrong.is_empty() {
        return Ok(());
    }
    let name = check::conversation::CHECK.name;
    Err(StepError::Checks(vec![Finding::new(name, wrong.join("; "))]))
}
