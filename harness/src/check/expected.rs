//! The expected differences, from `scenarios/audits.toml`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::action::{Action, Ending};
use super::diff::Difference;
use super::handover::Handover;
use crate::observe::facts::Change;
use crate::observe::host_condition::{HostCondition, HostFacts};
use crate::scenario::{ScenarioError, tree};

/// The file, as it was when this binary was built.
const EMBEDDED: &str = include_str!("../../../scenarios/audits.toml");
const NAME: &str = "audits.toml";
/// Texts in the errors of updates that hung or crashed.
const UNDONE: [&str; 2] = ["its deadline passed", "the update crashed"];

/// What happened between the two observations that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// A step without an update, after which the guest is the same.
    Step,
    /// `system_reset`, or anything else that reboots the guest.
    Reset,
    /// An update that completed.
    Updated,
    /// An update that was refused.
    Refused,
    /// An update that failed.
    Failed,
    /// The VM continued in another process.
    Revived,
    /// Several commands at once.
    Race,
}

impl Moment {
    /// The moment of `action`, after which the VM is in the process that `handover` names.
    pub fn of(action: &Action, handover: &Handover) -> Self {
        match action {
            _ if action.resets() => Self::Reset,
            _ if handover.revival().is_some() => Self::Revived,
            Action::Race { .. } => Self::Race,
            _ => match action.ending() {
                Some(Ending::Completed) => Self::Updated,
                // Rolled back like a failed update, wherever it was: the process executes the VMM
                // again.
                Some(Ending::Refused(error)) if UNDONE.iter().any(|why| error.contains(why)) => {
                    Self::Failed
                }
                Some(Ending::Refused(_)) => Self::Refused,
                Some(Ending::Failed(_) | Ending::Cancelled) => Self::Failed,
                None => Self::Step,
            },
        }
    }
}

/// An expected difference.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Expected {
    /// The audit that sees it.
    audit: String,
    /// Pattern for the whole name of what differs.
    item: String,
    /// When it may differ; empty: at any time.
    #[serde(default)]
    when: Vec<Moment>,
    /// Pattern for the value before; absent: any value.
    #[serde(default)]
    was: Option<String>,
    /// Pattern for the value after; absent: any value.
    #[serde(default)]
    is: Option<String>,
    /// The VMM that shows it; absent: every VMM.
    #[serde(default)]
    vmm: Option<String>,
    /// The hosts that show it, and must; absent: every host.
    #[serde(default)]
    host: Option<HostCondition>,
    /// Whether only some hosts or some runs show it.
    #[serde(default)]
    rare: bool,
    /// Why it differs, and why that is right.
    reason: String,
}

/// An expected difference with its compiled patterns.
#[derive(Debug)]
struct Entry {
    expected: Expected,
    item: Regex,
    was: Option<Regex>,
    is: Option<Regex>,
    /// Whether this host is one that shows it.
    here: bool,
    seen: AtomicBool,
}

/// All expected differences, and which of them were seen.
#[derive(Debug)]
pub struct Expectations(Vec<Entry>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    expected: Vec<Expected>,
}

impl Expectations {
    /// The expectations in the embedded file.
    pub fn embedded() -> &'static Self {
        static EMBEDDED_ONES: OnceLock<Expectations> = OnceLock::new();
        // Cannot fail: a test parses the same file.
        EMBEDDED_ONES.get_or_init(|| {
            HostFacts::with(|host| Self::parse(EMBEDDED, host)).expect("audits.toml is valid")
        })
    }

    fn parse(text: &str, host: HostFacts<'_>) -> Result<Self, ScenarioError> {
        let file: File = tree::from_str(NAME, text)?;
        let whole = |pattern: &str| {
            Regex::new(&format!("^(?s:{pattern})$"))
                .map_err(|error| ScenarioError::sense(NAME, format!("{pattern:?}: {error}")))
        };
        let entry = |expected: Expected| {
            if expected.reason.trim().is_empty() {
                let message = format!("{:?} has no reason", expected.item);
                return Err(ScenarioError::sense(NAME, message));
            }
            Ok(Entry {
                item: whole(&expected.item)?,
                was: expected.was.as_deref().map(whole).transpose()?,
                is: expected.is.as_deref().map(whole).transpose()?,
                here: expected.host.as_ref().is_none_or(|condition| condition.holds(host)),
                seen: AtomicBool::new(false),
                expected,
            })
        };
        Ok(Self(file.expected.into_iter().map(entry).collect::<Result<_, _>>()?))
    }

    /// Returns the changes that no entry explains, and marks the entries that explain one as seen.
    pub fn unexplained(
        &self,
        audit: &str,
        vmm: &str,
        moment: Moment,
        mut changes: Vec<Change>,
    ) -> Vec<Change> {
        changes.retain(|change| {
            let entry = self.0.iter().find(|entry| entry.explains(audit, vmm, moment, change));
            entry.inspect(|entry| entry.seen.store(true, Ordering::Relaxed)).is_none()
        });
        changes
    }

    /// Returns the entries about `vmm` that explained nothing, one line each.
    pub fn unseen(&self, vmm: &str) -> Vec<String> {
        self.unseen_where(|entry| entry.is_about(vmm))
    }

    /// Returns the entries that name `vmm` and explained nothing, one line each. Those without a name are
    /// left out: a VMM other than ours runs too few cases to show all of them.
    pub fn unseen_by_name(&self, vmm: &str) -> Vec<String> {
        let names = |entry: &Entry| entry.expected.vmm.as_deref() == Some(vmm);
        self.unseen_where(|entry| entry.is_about(vmm) && names(entry))
    }

    fn unseen_where(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<String> {
        let unseen = |entry: &&Entry| {
            !entry.seen.load(Ordering::Relaxed) && !entry.expected.rare && wanted(entry)
        };
        let tell = |Entry { expected, .. }: &Entry| {
            let Expected { audit, item, when, .. } = expected;
            format!("{NAME}: nothing of audit {audit} differed at {item:?} ({when:?}): remove it")
        };
        self.0.iter().filter(unseen).map(tell).collect()
    }
}

impl Entry {
    fn is_about(&self, vmm: &str) -> bool {
        self.here && self.expected.vmm.as_deref().is_none_or(|wanted| wanted == vmm)
    }

    fn explains(&self, audit: &str, vmm: &str, moment: Moment, change: &Change) -> bool {
        let fits = |pattern: &Option<Regex>, value: &Option<String>| {
            pattern.as_ref().is_none_or(|p| p.is_match(value.as_deref().unwrap_or("not there")))
        };
        self.expected.audit == audit
            && self.is_about(vmm)
            && (self.expected.when.is_empty() || self.expected.when.contains(&moment))
            && self.item.is_match(&change.item)
            && fits(&self.was, &change.was)
            && fits(&self.is, &change.is)
    }
}

/// The most changes that a finding lists.
const MOST: usize = 8;

/// The longest value in bytes that is shown in whole.
const LONG: usize = 80;

/// Fails with those of `changes` that no expectation explains.
pub fn judge(audit: &str, vmm: &str, moment: Moment, changes: Vec<Change>) -> Result<(), String> {
    let unexplained = Expectations::embedded().unexplained(audit, vmm, moment, changes);
    if unexplained.is_empty() {
        return Ok(());
    }
    let shown = unexplained.iter().take(MOST);
    let (lines, differences): (Vec<_>, Vec<_>) = shown.map(describe).unzip();
    let mut line = lines.join("; ");
    if let Some(more) = unexplained.len().checked_sub(MOST).filter(|more| *more > 0) {
        line.push_str(&format!("; and {more} more"));
    }
    let differences = differences.into_iter().flatten();
    Err(std::iter::once(line).chain(differences).collect::<Vec<_>>().join("\n"))
}

/// Describes a change in one line; if the values are long, returns their difference too.
fn describe(change: &Change) -> (String, Option<String>) {
    let (Some(was), Some(is)) = (&change.was, &change.is) else {
        return (change.to_string(), None);
    };
    if was.len().max(is.len()) <= LONG {
        return (change.to_string(), None);
    }
    let difference = Difference::of(&parts(was), &parts(is));
    let item = &change.item;
    let line = match is.len() <= LONG {
        true => format!("{item} changed, is {is}"),
        false => format!("{item} changed"),
    };
    (line, Some(format!("{item}:\n{}", difference.unified())))
}

/// Splits a value into lines: JSON as usual, other text at its separators.
fn parts(value: &str) -> Vec<String> {
    if let Ok(json @ (Value::Object(_) | Value::Array(_))) = serde_json::from_str(value) {
        return format!("{json:#}").lines().map(str::to_owned).collect();
    }
    let fits = |separator: &&str| value.split(*separator).all(|part| part.len() <= LONG);
    let separator = [" | ", " or "].into_iter().find(fits).unwrap_or(" ");
    value.split(separator).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        [[expected]]
        audit = "kvm"
        item = "cpu\\..*\\.tsc"
        when = ["updated"]
        is = "[0-9]+"
        reason = "time passes"

        [[expected]]
        audit = "kvm"
        item = "x"
        vmm = "qemu"
        reason = "known"

        [[expected]]
        audit = "kvm"
        item = "y"
        host = { kvm-with = "hyper-v" }
        reason = "a counter of the host"
    "#;

    const NO_HYPER_V: HostFacts<'_> =
        HostFacts { has_module: &|_| false, cpu_flags: &[], kvm_has: &|_| false };
    const HYPER_V: HostFacts<'_> = HostFacts { kvm_has: &|_| true, ..NO_HYPER_V };

    fn change(item: &str, is: Option<&str>) -> Change {
        Change { item: item.into(), was: Some("0".into()), is: is.map(str::to_owned) }
    }

    #[test]
    fn the_file_is_valid() {
        Expectations::parse(EMBEDDED, NO_HYPER_V).unwrap();
    }

    #[test]
    fn an_entry_explains_only_its_audit_moment_and_vmm() {
        let all = Expectations::parse(TEXT, NO_HYPER_V).unwrap();
        let tsc = || vec![change("cpu.0.tsc", Some("17"))];
        let left = |audit, vmm, moment, changes| all.unexplained(audit, vmm, moment, changes).len();
        assert_eq!(left("process", "a", Moment::Updated, tsc()), 1);
        assert_eq!(left("kvm", "a", Moment::Step, tsc()), 1);
        assert_eq!(left("kvm", "a", Moment::Updated, vec![change("cpu.0.tsc", None)]), 1);
        assert_eq!(left("kvm", "a", Moment::Updated, vec![change("cpu.0.tsc2", Some("17"))]), 1);
        assert_eq!(all.unseen("a").len(), 1);
        assert_eq!(all.unseen("qemu").len(), 2);
        assert_eq!(all.unseen_by_name("qemu").len(), 1);
        assert_eq!(all.unseen_by_name("a"), [""; 0]);
        assert_eq!(left("kvm", "a", Moment::Updated, tsc()), 0);
        assert_eq!(left("kvm", "a", Moment::Step, vec![change("x", None)]), 1);
        assert_eq!(left("kvm", "qemu", Moment::Step, vec![change("x", None)]), 0);
        assert_eq!(all.unseen("qemu"), [""; 0]);
    }

    #[test]
    fn an_entry_for_some_hosts_explains_nothing_elsewhere_and_is_not_missing_there() {
        let left = |host| {
            let all = Expectations::parse(TEXT, host).unwrap();
            let missing = all.unseen("a").len();
            let changes = vec![change("y", Some("1"))];
            (all.unexplained("kvm", "a", Moment::Step, changes).len(), missing)
        };
        assert_eq!(left(NO_HYPER_V), (1, 1));
        assert_eq!(left(HYPER_V), (0, 2));
    }

    #[test]
    fn long_values_are_shown_as_differences() {
        let change = |was: &str, is: &str| {
            let (was, is) = (Some(was.to_owned()), Some(is.to_owned()));
            let change = Change { item: "x".to_owned(), was, is };
            judge("none", "none", Moment::Step, vec![change]).unwrap_err()
        };
        assert_eq!(change("1 2", "1 3"), "x was 1 2, is 1 3");
        let same = (0..40).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let text = change(&format!("{same} SndBuf 1"), &format!("{same} SndBuf 2"));
        assert_eq!(text, "x changed\nx:\n  39\n  SndBuf\n- 1\n+ 2");
        assert!(change(&same, "none").starts_with("x changed, is none\nx:\n- 0\n"));
        let json = |last: u8| format!("{{\"list\":[\"{same}\"],\"last\":{last}}}");
        let text = change(&json(1), &json(2));
        let (unchanged, changed) = text.split_once("\n    ],\n").unwrap();
        assert!(unchanged.starts_with("x changed\nx:\n") && unchanged.ends_with('…'), "{text}");
        assert_eq!(changed, "-   \"last\": 1\n+   \"last\": 2\n  }");
    }

    #[test]
    fn rejects_an_entry_without_reason() {
        let text = "[[expected]]\naudit = \"a\"\nitem = \"x\"\nreason = \" \"\n";
        let error = Expectations::parse(text, NO_HYPER_V).unwrap_err().to_string();
        assert!(error.contains("has no reason"), "{error}");
    }
}
