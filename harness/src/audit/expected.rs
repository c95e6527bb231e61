//! The differences that are expected: `scenarios/audits.toml`.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use regex::Regex;
use serde::Deserialize;

use super::Change;
use crate::check::{Action, Ending, Handover};
use crate::scenario::ScenarioError;

/// The file, as it was when this binary was built.
const EMBEDDED: &str = include_str!("../../../scenarios/audits.toml");
const NAME: &str = "audits.toml";
/// What the error of an update says that hung or crashed.
const UNDONE: [&str; 2] = ["its deadline passed", "the update crashed"];

/// Between which two looks a difference was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moment {
    /// A step without an update, after which the guest is the same.
    Step,
    /// `system_reset`, or whatever else boots the guest anew.
    Reset,
    /// An update that completed.
    Updated,
    /// An update that was refused.
    Refused,
    /// An update that failed.
    Failed,
    /// The VM went on in another process.
    Revived,
    /// Several commands at once.
    Race,
}

impl Moment {
    /// That of `action`, after which the VM is where `handover` says.
    pub fn of(action: &Action, handover: &Handover) -> Self {
        match action {
            _ if action.resets() => Self::Reset,
            _ if handover.revival().is_some() => Self::Revived,
            Action::Race { .. } => Self::Race,
            _ => match action.ending() {
                Some(Ending::Completed) => Self::Updated,
                // Such a one is undone like one that fails, wherever it was: the process begins anew.
                Some(Ending::Refused(error)) if UNDONE.iter().any(|why| error.contains(why)) => {
                    Self::Failed
                }
                Some(Ending::Refused(_)) => Self::Refused,
                Some(Ending::Failed(_)) => Self::Failed,
                None => Self::Step,
            },
        }
    }
}

/// A difference that is expected.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Expected {
    /// The audit that sees it.
    audit: String,
    /// The names of what differs, all of each.
    item: String,
    /// When; empty: at any time.
    #[serde(default)]
    when: Vec<Moment>,
    /// What it was; not given: whatever.
    #[serde(default)]
    was: Option<String>,
    /// What it is; not given: whatever.
    #[serde(default)]
    is: Option<String>,
    /// The VMM that shows it; not given: each.
    #[serde(default)]
    vmm: Option<String>,
    /// Not every host, or not every run, shows it.
    #[serde(default)]
    rare: bool,
    /// Why it is so, and why that is right.
    reason: String,
}

/// One with its patterns.
#[derive(Debug)]
struct Entry {
    expected: Expected,
    item: Regex,
    was: Option<Regex>,
    is: Option<Regex>,
    seen: AtomicBool,
}

/// All that is expected, and what was seen of it.
#[derive(Debug)]
pub struct Expectations(Vec<Entry>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    expected: Vec<Expected>,
}

impl Expectations {
    /// Those of the file.
    pub fn embedded() -> &'static Self {
        static EMBEDDED_ONES: OnceLock<Expectations> = OnceLock::new();
        // A test parses it, so that this is told when it is built.
        EMBEDDED_ONES.get_or_init(|| Self::parse(EMBEDDED).expect("audits.toml is valid"))
    }

    fn parse(text: &str) -> Result<Self, ScenarioError> {
        let file: File = toml::from_str(text).map_err(|e| ScenarioError::syntax(NAME, text, &e))?;
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
                seen: AtomicBool::new(false),
                expected,
            })
        };
        Ok(Self(file.expected.into_iter().map(entry).collect::<Result<_, _>>()?))
    }

    /// The changes that no entry explains. An entry that explains one has been seen.
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

    /// The entries about `vmm` that explained nothing, one line each.
    pub fn unseen(&self, vmm: &str) -> Vec<String> {
        let unseen = |entry: &&Entry| {
            !entry.seen.load(Ordering::Relaxed) && !entry.expected.rare && entry.is_about(vmm)
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
        self.expected.vmm.as_deref().is_none_or(|wanted| wanted == vmm)
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
    "#;

    fn change(item: &str, is: Option<&str>) -> Change {
        Change { item: item.into(), was: Some("0".into()), is: is.map(str::to_owned) }
    }

    #[test]
    fn the_file_is_valid() {
        Expectations::parse(EMBEDDED).unwrap();
    }

    #[test]
    fn only_what_is_expected_then_and_there_is_explained() {
        let all = Expectations::parse(TEXT).unwrap();
        let tsc = || vec![change("cpu.0.tsc", Some("17"))];
        let left = |audit, vmm, moment, changes| all.unexplained(audit, vmm, moment, changes).len();
        assert_eq!(left("process", "a", Moment::Updated, tsc()), 1);
        assert_eq!(left("kvm", "a", Moment::Step, tsc()), 1);
        assert_eq!(left("kvm", "a", Moment::Updated, vec![change("cpu.0.tsc", None)]), 1);
        assert_eq!(left("kvm", "a", Moment::Updated, vec![change("cpu.0.tsc2", Some("17"))]), 1);
        assert_eq!(all.unseen("a").len(), 1);
        assert_eq!(all.unseen("qemu").len(), 2);
        assert_eq!(left("kvm", "a", Moment::Updated, tsc()), 0);
        assert_eq!(left("kvm", "a", Moment::Step, vec![change("x", None)]), 1);
        assert_eq!(left("kvm", "qemu", Moment::Step, vec![change("x", None)]), 0);
        assert_eq!(all.unseen("qemu"), [""; 0]);
    }

    #[test]
    fn an_entry_says_why() {
        let text = "[[expected]]\naudit = \"a\"\nitem = \"x\"\nreason = \" \"\n";
        let error = Expectations::parse(text).unwrap_err().to_string();
        assert!(error.contains("has no reason"), "{error}");
    }
}
