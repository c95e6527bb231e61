//! The verdict and report on a case.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::check::gaps::Refusal;
use crate::check::{Finding, damage, pid, progress, ram};
use crate::model::judge::Observed;
use crate::observe::phases::UpdatePhases;

/// The check name under which the watchdog reports.
pub const WATCHDOG: &str = "watchdog";

/// The check name under which the reference model reports an unexpected state of the VMM that every
/// check passes.
pub const MODEL: &str = "model";

/// The check name under which the harness reports its own bugs.
pub const HARNESS: &str = "harness";

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every step succeeded and every check passed.
    Pass,
    /// Checks or steps failed.
    Fail(Vec<Finding>),
    /// The case was not run, for this reason.
    Ignored(String),
    /// The machine did not let the case run, for this reason.
    Broken(String),
}

/// The start of the reason if the host's KVM lacks what the guest tests. It cannot be installed, so
/// such a case is not a miss even where everything must run.
pub const HOST_LACKS: &str = "not available here: ";

impl Verdict {
    /// Returns the findings, one line each.
    pub fn findings(&self) -> Vec<String> {
        match self {
            Self::Fail(findings) => findings.iter().map(Finding::to_string).collect(),
            Self::Pass | Self::Ignored(_) | Self::Broken(_) => Vec::new(),
        }
    }

    /// Returns why the case was not run, if that can be fixed.
    pub fn miss(&self) -> Option<&str> {
        match self {
            Self::Ignored(why) if !why.starts_with(HOST_LACKS) => Some(why),
            _ => None,
        }
    }
}

/// The report on one case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The case.
    pub case: String,
    /// How it ended.
    pub verdict: Verdict,
    /// The step at which it failed.
    pub failed_step: Option<String>,
    /// Updates that succeeded.
    pub updates: u32,
    /// The blackout of each update as the guest saw it, where measured.
    pub blackouts: Vec<Duration>,
    /// The phases of each successful update, where the VMM logs them.
    #[serde(default)]
    pub phases: Vec<UpdatePhases>,
    /// What the host measured of each update that it watched.
    #[serde(default)]
    pub host_seen: Vec<HostSeen>,
    /// The errors of updates that did not succeed, each once.
    #[serde(default)]
    pub failed_updates: Vec<FailedUpdate>,
    /// The events of each step that had any.
    #[serde(default)]
    pub heard: Vec<Heard>,
    /// What was observed after each step that left the VMM running.
    #[serde(default)]
    pub observed: Vec<Observed>,
    /// What the guest noticed of refused updates, where measured.
    #[serde(default)]
    pub refusals: Vec<Refusal>,
    /// Kills of the VMM during updates.
    #[serde(default)]
    pub kills: Vec<Kill>,
    /// Deaths of the VMM's process that the VM survived.
    #[serde(default)]
    pub revivals: Vec<Revived>,
    /// The largest step of each clock of a Linux guest against its TSC.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clock_steps: Vec<ClockStep>,
    /// The VMM's own memory in KiB after boot, after the first update and after the last.
    pub memory_kib: Vec<u64>,
    /// How long the case took.
    pub took: Duration,
    /// The command that runs exactly this case again.
    pub replay: String,
    /// The command that shows what happened.
    #[serde(default)]
    pub show: String,
    /// The PID and QMP socket of the VM that was left running.
    pub kept: Option<(i32, String)>,
}

/// What the host measured of an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSeen {
    /// The longest time without a heartbeat of some vCPU.
    pub blackout: Duration,
    /// How long the guest took to touch all its RAM, if it does so.
    pub touch: Option<Touch>,
}

/// The largest step of a clock in a Linux guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockStep {
    /// The clock's name.
    pub clock: String,
    /// By how much at least it differed from the TSC between two readings.
    pub largest: Duration,
}

/// How long a guest took to touch all its RAM once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// Before the update.
    pub before: Duration,
    /// After it.
    pub after: Duration,
}

/// An update that did not succeed, described in the same words on every machine and in every run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedUpdate {
    /// What was wrong with it.
    pub what: String,
    /// `refused` or `failed`.
    pub ended: String,
    /// The error that the operator gets.
    pub error: String,
}

/// The events of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The step.
    pub step: String,
    /// The events in order; `MIGRATION` events include their status.
    pub events: Vec<String>,
}

/// One kill of the VMM during an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// When the signal was sent, in microseconds after `migrate`; negative before it.
    pub moment_us: i64,
    /// The last event of the update, if one was received.
    pub last_event: Option<String>,
    /// How long it took until nothing was left, or the VM was seen to continue.
    pub gone: Duration,
    /// Whether the VM survived.
    #[serde(default)]
    pub revived: bool,
}

impl Kill {
    /// Returns whether the kill came between the first and the last event of an update.
    pub fn landed(&self) -> bool {
        self.last_event.as_deref().is_some_and(|last| last != "MIGRATION(completed)")
    }
}

/// A death of a VMM's process that its VM survived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revived {
    /// The process that died.
    pub former: i32,
    /// The process in which the VM continues.
    pub pid: i32,
    /// The reason that the VMM gave.
    pub reason: String,
    /// The blackout as the guest saw it, where measured.
    pub blackout: Option<Duration>,
    /// The time from the death until every vCPU was seen to beat, if the guest ran.
    pub beat: Option<Duration>,
}

impl Report {
    /// Creates an empty report on a case, with the commands that replay and show it.
    pub fn of(case: &str, replay: String, show: String) -> Self {
        Self {
            case: case.to_owned(),
            verdict: Verdict::Pass,
            failed_step: None,
            updates: 0,
            blackouts: Vec::new(),
            phases: Vec::new(),
            host_seen: Vec::new(),
            failed_updates: Vec::new(),
            heard: Vec::new(),
            observed: Vec::new(),
            refusals: Vec::new(),
            kills: Vec::new(),
            revivals: Vec::new(),
            clock_steps: Vec::new(),
            memory_kib: Vec::new(),
            took: Duration::ZERO,
            replay,
            show,
            kept: None,
        }
    }

    /// Returns true if the VM was lost: the process died, the guest hung, was reset or damaged, or
    /// the watchdog had to end it.
    pub fn lost_its_vm(&self) -> bool {
        let fatal =
            [pid::NAME, progress::CHECK.name, damage::CHECK.name, ram::CHECK.name, WATCHDOG];
        let Verdict::Fail(findings) = &self.verdict else { return false };
        findings.iter().any(|finding| fatal.contains(&finding.check.as_str()))
    }

    /// Describes how the case ended, by the failed checks and the step, so that two runs with the
    /// same end have the same text.
    pub fn ended(&self) -> String {
        match &self.verdict {
            Verdict::Pass => "passed".to_owned(),
            Verdict::Fail(findings) => {
                let checks: BTreeSet<&str> = findings.iter().map(|f| f.check.as_str()).collect();
                let checks = checks.into_iter().collect::<Vec<_>>().join(", ");
                let step = self.failed_step.as_deref().unwrap_or("no step");
                format!("{checks} failed at {step}")
            }
            Verdict::Ignored(why) => format!("ignored ({why})"),
            Verdict::Broken(why) => format!("not run ({why})"),
        }
    }

    /// Returns the two commands to use after a failure.
    pub fn repro_commands(&self) -> Vec<String> {
        let lines = [("replay", &self.replay), ("show", &self.show)];
        let known = lines.into_iter().filter(|(_, line)| !line.is_empty());
        known.map(|(what, line)| format!("{what}: {line}")).collect()
    }

    /// Returns the median and the largest blackout of updates.
    pub fn blackout(&self) -> Option<(Duration, Duration)> {
        median_and_largest(self.blackouts.clone())
    }

    /// Returns the median and the largest blackout of revivals.
    pub fn blackout_of_revivals(&self) -> Option<(Duration, Duration)> {
        median_and_largest(self.revivals.iter().filter_map(|revived| revived.blackout).collect())
    }
}

fn median_and_largest(mut all: Vec<Duration>) -> Option<(Duration, Duration)> {
    all.sort();
    Some((*all.get(all.len() / 2)?, *all.last()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn report(verdict: Verdict) -> Report {
        Report { verdict, ..Report::of("", String::new(), String::new()) }
    }

    #[rstest]
    #[case(&["pid"], true)]
    #[case(&["events", "progress"], true)]
    #[case(&["damage"], true)]
    #[case(&["ram"], true)]
    #[case(&["watchdog"], true)]
    #[case(&["fds", "leftovers"], false)]
    #[case(&["killed"], false)]
    #[case(&["step"], false)]
    fn vm_is_lost_with_its_process_or_guest(#[case] checks: &[&str], #[case] lost: bool) {
        let findings = checks.iter().map(|check| Finding::new(check, "")).collect();
        assert_eq!(report(Verdict::Fail(findings)).lost_its_vm(), lost);
    }

    #[test]
    fn passed_case_does_not_lose_its_vm() {
        assert!(!report(Verdict::Pass).lost_its_vm());
    }
}
