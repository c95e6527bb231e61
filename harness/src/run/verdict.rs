//! What comes out of a case.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::check::{Finding, damage, pid, progress, ram};
use crate::observe::phases::UpdatePhases;

/// The name under which the watchdog reports.
pub const WATCHDOG: &str = "watchdog";

/// The name under which the reference model reports that the VMM is not where it should be, though
/// every check holds.
pub const MODEL: &str = "model";

/// The name under which the harness reports on itself.
pub const HARNESS: &str = "harness";

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every step did what it should and every check held.
    Pass,
    /// What did not.
    Fail(Vec<Finding>),
    /// It was not run: why.
    Ignored(String),
    /// The machine did not let it run: why.
    Broken(String),
}

/// What the reason begins with where the host's KVM lacks what the guest is about: nobody can
/// install it, so it is no miss even where everything must run.
pub const HOST_LACKS: &str = "not available here: ";

impl Verdict {
    /// What it found wrong, each in one line.
    pub fn findings(&self) -> Vec<String> {
        match self {
            Self::Fail(findings) => findings.iter().map(Finding::to_string).collect(),
            Self::Pass | Self::Ignored(_) | Self::Broken(_) => Vec::new(),
        }
    }

    /// Why it was not run, where that could be mended.
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
    /// The blackout of each update as its guest saw it, where it could be seen.
    pub blackouts: Vec<Duration>,
    /// The phases of each update that succeeded, where the VMM tells them.
    #[serde(default)]
    pub phases: Vec<UpdatePhases>,
    /// What the host saw of each update that was measured.
    #[serde(default)]
    pub host_seen: Vec<HostSeen>,
    /// The errors of updates that did not succeed, each once.
    #[serde(default)]
    pub failed_updates: Vec<FailedUpdate>,
    /// The events of each step that had any.
    #[serde(default)]
    pub heard: Vec<Heard>,
    /// What was seen after each step that left the VMM up.
    #[serde(default)]
    pub observed: Vec<Observed>,
    /// What the guest noticed of updates that were refused, where it could be seen.
    #[serde(default)]
    pub refusals: Vec<Refusal>,
    /// Updates cut off by SIGKILL.
    #[serde(default)]
    pub kills: Vec<Kill>,
    /// Deaths of the VMM's process that the VM has survived.
    #[serde(default)]
    pub revivals: Vec<Revived>,
    /// The VMM's own memory in KiB after boot, after the first update and after the last.
    pub memory_kib: Vec<u64>,
    /// How long it took.
    pub took: Duration,
    /// How to run exactly this again.
    pub replay: String,
    /// How to read what happened.
    #[serde(default)]
    pub show: String,
    /// The VM that was left up: PID and socket.
    pub kept: Option<(i32, String)>,
}

/// What the host saw of an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSeen {
    /// The longest time in which some vCPU's heartbeat stood still.
    pub blackout: Duration,
    /// How long the guest took to touch all its RAM, if it does that.
    pub touch: Option<Touch>,
}

/// How long a guest took to touch all its RAM once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// Before the update.
    pub before: Duration,
    /// After it.
    pub after: Duration,
}

/// An update that did not succeed, in words that are the same on every machine and in every run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedUpdate {
    /// What was wrong with it.
    pub what: String,
    /// `refused` or `failed`.
    pub ended: String,
    /// The error that its operator reads.
    pub error: String,
}

/// The events of a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The step.
    pub step: String,
    /// In their order; those of `MIGRATION` with their status.
    pub events: Vec<String>,
}

/// What was seen after a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The step.
    pub step: String,
    /// `status` of `query-status`.
    pub run_state: String,
    /// `status` of `query-migrate`, if it has one.
    pub migration: Option<String>,
    /// How each update of the step has ended: `completed`, `refused` or `failed`.
    #[serde(default)]
    pub endings: Vec<String>,
}

/// What a running guest noticed of an update that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// How long it was watched.
    pub took: Duration,
    /// The largest gap between its heartbeats in as long a time in which nothing was asked.
    pub calm: Duration,
    /// The largest gap while the update was refused.
    pub during: Duration,
}

impl Refusal {
    /// How much larger the gap was than without.
    pub fn ratio(&self) -> f64 {
        self.during.as_secs_f64() / self.calm.as_secs_f64().max(1e-9)
    }
}

/// One SIGKILL in an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {
    /// When it was sent, in microseconds after `migrate`; negative before it.
    pub moment_us: i64,
    /// The last event of the update, if one was heard.
    pub last_event: Option<String>,
    /// How long it took until nothing was left, or the VM was seen to continue.
    pub gone: Duration,
    /// The VM has survived it.
    #[serde(default)]
    pub revived: bool,
}

impl Kill {
    /// It came between the first event of an update and the last.
    pub fn landed(&self) -> bool {
        self.last_event.as_deref().is_some_and(|last| last != "MIGRATION(completed)")
    }
}

/// A death of a VMM's process that its VM has survived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revived {
    /// The process that died.
    pub former: i32,
    /// The one in which the VM continues.
    pub pid: i32,
    /// Why, in the VMM's words.
    pub reason: String,
    /// The blackout as the guest saw it, where it could be seen.
    pub blackout: Option<Duration>,
    /// From the death until every vCPU was seen to beat, where the guest ran.
    pub beat: Option<Duration>,
}

impl Report {
    /// That on a case of which nothing is known but how to run it again, and to read what happened.
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
            memory_kib: Vec::new(),
            took: Duration::ZERO,
            replay,
            show,
            kept: None,
        }
    }

    /// True if its VM was lost: the process died, the guest hangs, was reset or damaged, or the
    /// watchdog had to end it.
    pub fn lost_its_vm(&self) -> bool {
        let fatal =
            [pid::NAME, progress::CHECK.name, damage::CHECK.name, ram::CHECK.name, WATCHDOG];
        let Verdict::Fail(findings) = &self.verdict else { return false };
        findings.iter().any(|finding| fatal.contains(&finding.check.as_str()))
    }

    /// How it ended, in words that are the same if it ends so again: the checks and the step.
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

    /// The two lines to type after a failure.
    pub fn to_type(&self) -> Vec<String> {
        let lines = [("replay", &self.replay), ("show", &self.show)];
        let known = lines.into_iter().filter(|(_, line)| !line.is_empty());
        known.map(|(what, line)| format!("{what}: {line}")).collect()
    }

    /// Median and largest blackout.
    pub fn blackout(&self) -> Option<(Duration, Duration)> {
        median_and_largest(self.blackouts.clone())
    }

    /// The same of revivals.
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
    fn a_vm_is_lost_with_its_process_or_its_guest(#[case] checks: &[&str], #[case] lost: bool) {
        let findings = checks.iter().map(|check| Finding::new(check, "")).collect();
        assert_eq!(report(Verdict::Fail(findings)).lost_its_vm(), lost);
    }

    #[test]
    fn a_vm_is_not_lost_by_a_case_that_does_not_fail() {
        assert!(!report(Verdict::Pass).lost_its_vm());
    }
}
