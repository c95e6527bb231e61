//! Random losses that no scenario was written for: each is derived from its number, planted in the
//! process that takes over, and tested by a selection of scenarios. The share that is detected
//! measures the harness.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::slice;
use std::sync::Arc;

use super::trial::Outcome;
use crate::backend::cpr_vmm::CprVmm;
use crate::run::{Options, Report, case, evidence};
use crate::scenario::{Case, ScenarioError};

/// The cases to run, most effective per unit of time first.
const CASES: [&str; 12] = [
    "update/stopped[cpus=2,pages=4k]",
    "update/running[cpus=2,pages=4k]",
    "inside/all-registers[cpus=2]",
    "inside/interrupts[cpus=1,test=pic-edge]",
    "inside/interrupts[cpus=2,test=ipi]",
    "inside/timer[cpus=1,test=pit-modes]",
    "inside/timer[cpus=1,test=deadline]",
    "inside/serial[cpus=1]",
    "inside/smp[cpus=2]",
    "inside/registers[cpus=1,test=debug]",
    "update/after-reset[cpus=2]",
    "inside/clock[cpus=1,test=pvclock]",
];

/// Losses that leave the guest unchanged, and why. The structures are those of the KVM API.
const NO_EFFECT: [(&str, &str); 4] = [
    (
        r"platform\.\d+\.pit bytes 0x(1[0-7]|2[89a-f]|4[0-7]) to 0x(1[0-7]|2[89a-f]|4[0-7]),.*",
        "the load time of a counter: KVM_SET_PIT2 reloads all of them",
    ),
    (
        r"vcpu\.\d+\.lapic bytes 0x3[0-3] to 0x3[0-3],.*",
        "the LAPIC's version: KVM_SET_LAPIC writes its own",
    ),
    (
        r"platform\.\d+\.clock bytes 0x1[89a-f] to 0x1[89a-f],.*",
        "the host's TSC when the clock was read: KVM_SET_CLOCK ignores it",
    ),
    (
        r"vcpu\.\d+\.events bytes 0x8 to 0x9, \[00, ..\],.*",
        "the vector of an interrupt that is not being delivered",
    ),
];

/// Name of the log event of a planted loss.
const LOGGED: &str = "planted_loss";

/// Selects the cases from `all`.
pub fn cases(all: &[Case]) -> Result<Vec<&Case>, ScenarioError> {
    let find = |name: &&str| {
        let message = || format!("case {name} of the random catalogue does not exist");
        all.iter()
            .find(|case| case.name == **name)
            .ok_or_else(|| ScenarioError::sense("random.rs", message()))
    };
    CASES.iter().map(find).collect()
}

/// How a loss was detected, if it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Noticed {
    /// This case failed in these checks.
    By {
        /// Its name.
        case: String,
        /// The checks.
        checks: Vec<String>,
    },
    /// No case failed.
    Never,
    /// No case failed, because the loss is known to have no effect, for this reason.
    NoEffect(&'static str),
    /// The cases had nothing of this kind to lose.
    NothingLost,
    /// A case could not run, for this reason.
    NotRun(String),
}

impl fmt::Display for Noticed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::By { case, checks } => write!(f, "{} in {case}", checks.join(", ")),
            Self::Never => f.write_str("NOT DETECTED"),
            Self::NoEffect(why) => write!(f, "no effect: {why}"),
            Self::NothingLost => f.write_str("nothing to lose"),
            Self::NotRun(why) => write!(f, "not run: {why}"),
        }
    }
}

/// One loss.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Its number.
    pub number: u64,
    /// What the VMM logged as lost, without duplicates.
    pub what: Vec<String>,
    /// Whether and how it was detected.
    pub noticed: Noticed,
}

/// Plants loss `number` in every process that takes over, and runs `cases` until one fails.
pub fn plant(number: u64, cases: &[&Case], vmm: &CprVmm, options: &Options) -> Loss {
    let argument = format!("--plant=lose-{number}");
    let options = Options {
        backend: Arc::new(vmm.clone().with_new(slice::from_ref(&argument))),
        evidence: options.evidence.join(number.to_string()),
        vmm_option: format!(" --new-vmm-arg={argument}"),
        ..options.clone()
    };
    let mut loss = Loss { number, what: Vec::new(), noticed: Noticed::NothingLost };
    for case in cases {
        let report = case::run(case, &options);
        for what in lost(case, &options) {
            if !loss.what.contains(&what) {
                loss.what.push(what);
            }
        }
        loss.noticed = match Outcome::from(&report) {
            Outcome::Failed { mut checks, .. } => {
                checks.dedup();
                Noticed::By { case: case.name.clone(), checks }
            }
            Outcome::NotRun(why) => Noticed::NotRun(why),
            Outcome::Passed if loss.what.is_empty() => Noticed::NothingLost,
            Outcome::Passed => Noticed::Never,
        };
        if matches!(loss.noticed, Noticed::By { .. } | Noticed::NotRun(_)) {
            break;
        }
    }
    if let (Noticed::Never, Some(why)) = (&loss.noticed, no_effect(&loss.what)) {
        loss.noticed = Noticed::NoEffect(why);
    }
    // Keep the evidence of undetected losses only.
    if loss.noticed != Noticed::Never {
        let _ = fs::remove_dir_all(&options.evidence);
    }
    loss
}

/// Returns why these losses have no effect; none if one of them may have.
fn no_effect(what: &[String]) -> Option<&'static str> {
    let reason = |what: &String| {
        let fits = |pattern: &str| {
            regex::Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|known| known.is_match(what))
        };
        NO_EFFECT.iter().find(|(pattern, _)| fits(pattern)).map(|(_, why)| *why)
    };
    what.iter().map(reason).collect::<Option<Vec<_>>>()?.first().copied()
}

/// Returns what was lost according to the log of `case`.
fn lost(case: &Case, options: &Options) -> Vec<String> {
    let log = options.evidence.join(evidence::folder_name(&case.name)).join(evidence::VMM_LOG);
    let log = fs::read_to_string(log).unwrap_or_default();
    log.lines().filter_map(told).collect()
}

/// Returns what was lost according to a line of the log.
fn told(line: &str) -> Option<String> {
    let (_, what) = line.split_once(LOGGED)?;
    let what = what.trim().strip_prefix("what=").unwrap_or(what.trim());
    Some(what.trim_matches('"').replace("\\\"", "\""))
}

/// Returns the first of `cases` that does not pass without a loss: it would invalidate all results.
pub fn alarm(cases: &[&Case], options: &Options) -> Option<Report> {
    let mut reports = cases.iter().map(|case| case::run(case, options));
    reports.find(|report| Outcome::from(report) != Outcome::Passed)
}

/// Returns the numbers of the losses for a seed.
pub fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let mut random = fastrand::Rng::with_seed(seed);
    // Short enough to type.
    std::iter::repeat_with(move || random.u64(..1 << 32))
}

/// Counts how many losses were detected, and by which checks.
#[derive(Clone, Debug, Default)]
pub struct Share {
    /// Losses that occurred and may have an effect.
    pub lost: u32,
    /// Those of them that were detected.
    pub noticed: u32,
    /// Further losses, known to have no effect.
    pub no_effect: u32,
    /// Detected losses, by the first check that failed.
    pub by: BTreeMap<String, u32>,
}

/// The share that must be detected, in percent.
const ENOUGH: u32 = 95;

impl Share {
    /// True if enough losses were detected. Without any loss there is no result.
    pub fn is_enough(&self) -> bool {
        self.lost > 0 && self.noticed * 100 >= self.lost * ENOUGH
    }

    /// Counts a loss.
    pub fn count(&mut self, noticed: &Noticed) {
        match noticed {
            Noticed::By { checks, .. } => {
                self.lost += 1;
                self.noticed += 1;
                let check = checks.first().cloned().unwrap_or_default();
                *self.by.entry(check).or_default() += 1;
            }
            Noticed::Never => self.lost += 1,
            Noticed::NoEffect(_) => self.no_effect += 1,
            Noticed::NothingLost | Noticed::NotRun(_) => {}
        }
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, noticed, no_effect, by } = self;
        let percent = f64::from(*noticed) * 100.0 / f64::from((*lost).max(1));
        write!(f, "{noticed} of {lost} losses detected ({percent:.1} %)")?;
        if *no_effect > 0 {
            write!(f, ", {no_effect} more without effect")?;
        }
        let mut by: Vec<_> = by.iter().collect();
        by.sort_by_key(|(check, count)| (std::cmp::Reverse(**count), (*check).clone()));
        let by: Vec<_> = by.iter().map(|(check, count)| format!("{check} {count}")).collect();
        if by.is_empty() { Ok(()) } else { write!(f, ": {}", by.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::set::Set;

    #[test]
    fn every_selected_case_exists() {
        assert_eq!(cases(&Set::embedded().unwrap().cases).unwrap().len(), CASES.len());
    }

    #[test]
    fn what_was_lost_is_read_from_the_log() {
        let line = r#"2026-11-29T09:49:50.41Z  INFO cpr_vmm::failpoints::loss: planted_loss what="a \"b\" c""#;
        assert_eq!(told(line).as_deref(), Some("a \"b\" c"));
        assert_eq!(told("2026-11-29T09:49:50.41Z  INFO cpr_vmm: other what=\"a\""), None);
    }

    #[test]
    fn losses_without_effect_have_a_reason() {
        let of = |what: &[&str]| no_effect(&what.iter().map(|&w| w.to_owned()).collect::<Vec<_>>());
        let version = "vcpu.1.lapic bytes 0x30 to 0x31, [14, 00], become 0";
        let divide = "vcpu.0.lapic bytes 0x3e0 to 0x3e1, [0b, 00], become 0";
        assert!(of(&[version, version]).is_some_and(|why| why.contains("version")));
        assert_eq!(of(&[version, divide]), None);
        assert_eq!(of(&["vcpu.0.events bytes 0x8 to 0x9, [01, 40], become 0"]), None);
        assert_eq!(of(&[]), None);
        // An invalid pattern would silently match nothing.
        let good = |(pattern, _): &(&str, _)| regex::Regex::new(pattern).is_ok();
        assert!(NO_EFFECT.iter().all(good));
    }

    #[test]
    fn a_seed_always_has_the_same_losses() {
        let of = |seed| numbers(seed).take(9).collect::<Vec<_>>();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn nothing_lost_is_not_enough() {
        let mut share = Share::default();
        share.count(&Noticed::NothingLost);
        assert!(!share.is_enough());
        share.count(&Noticed::By { case: "c".into(), checks: vec!["fds".into()] });
        assert!(share.is_enough());
    }

    #[test]
    fn the_share_is_of_what_was_lost() {
        let mut share = Share::default();
        let by = |check: &str| Noticed::By { case: "c".into(), checks: vec![check.into()] };
        let not = [Noticed::Never, Noticed::NothingLost, Noticed::NoEffect("")];
        for noticed in [by("fds"), by("process"), by("fds")].iter().chain(&not) {
            share.count(noticed);
        }
        let told = "3 of 4 losses detected (75.0 %), 1 more without effect: fds 2, process 1";
        assert_eq!(share.to_string(), told);
    }
}
