//! Compares the reports of two VMMs on one case.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::run::verdict::FailedUpdate;
use crate::run::{Report, Verdict};

/// The kind of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The verdict on the case.
    Verdict,
    /// How an update that must not succeed ends: refused, or failed later.
    Ending,
    /// The events of a step.
    Events,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verdict => "verdict",
            Self::Ending => "ending",
            Self::Events => "events",
        })
    }
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The kind of the difference.
    pub kind: Kind,
    /// The result on the first VMM.
    pub first: String,
    /// The result on the second VMM.
    pub second: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} | {}", self.kind, self.first, self.second)
    }
}

/// Result of comparing a case on both VMMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// It ran on both; these are the differences.
    Compared(Vec<Mismatch>),
    /// One of them ignored it, for this reason.
    Ignored(String),
    /// The host prevented it from running, for this reason.
    Broken(String),
}

/// Compares the reports on one case.
pub fn compare(first: &Report, second: &Report) -> Comparison {
    for report in [first, second] {
        match &report.verdict {
            Verdict::Ignored(why) => return Comparison::Ignored(why.clone()),
            Verdict::Broken(why) => return Comparison::Broken(why.clone()),
            Verdict::Pass | Verdict::Fail(_) => {}
        }
    }
    let mut differs = Vec::new();
    let alike = first.verdict == Verdict::Pass && second.verdict == Verdict::Pass;
    differs.extend(verdicts(first, second));
    differs.extend(endings(&first.failed_updates, &second.failed_updates));
    // After a failure, the steps are no longer comparable.
    if alike {
        differs.extend(events(first, second));
    }
    Comparison::Compared(differs)
}

/// The verdict of a case that passes.
pub const PASS: &str = "pass";

/// Compares the verdicts; if the first passes, there is one difference per finding of the second,
/// so that each of them must be known.
pub fn verdicts(first: &Report, second: &Report) -> Vec<Mismatch> {
    let differs = |first: &str, second: String| Mismatch {
        kind: Kind::Verdict,
        first: first.to_owned(),
        second,
    };
    match (first.verdict.findings().as_slice(), second.verdict.findings()) {
        ([], found) => found.into_iter().map(|finding| differs(PASS, finding)).collect(),
        (failed, found) if found.is_empty() => vec![differs(&failed.join("; "), PASS.into())],
        (failed, found) => vec![differs(&failed.join("; "), found.join("; "))],
    }
}

fn endings<'a>(
    first: &'a [FailedUpdate],
    second: &'a [FailedUpdate],
) -> impl Iterator<Item = Mismatch> + 'a {
    let pair = |one: &'a FailedUpdate| Some((one, second.iter().find(|two| two.what == one.what)?));
    let different = |(one, two): &(&FailedUpdate, &FailedUpdate)| one.ended != two.ended;
    first.iter().filter_map(pair).filter(different).map(|(one, two)| Mismatch {
        kind: Kind::Ending,
        first: format!("{}: {}", one.ended, one.error),
        second: format!("{}: {}", two.ended, two.error),
    })
}

/// Compares events update by update; each distinct difference is returned once.
fn events(first: &Report, second: &Report) -> Vec<Mismatch> {
    let of = |report: &Report, step: &str| -> Vec<String> {
        let heard = report.heard.iter().find(|heard| heard.step == step);
        heard.map_or_else(Vec::new, |heard| heard.events.clone())
    };
    let steps = first.heard.iter().chain(&second.heard).map(|heard| heard.step.as_str());
    let mut differs: Vec<Mismatch> = Vec::new();
    for step in steps {
        let (one, two) = (updates(&of(first, step)), updates(&of(second, step)));
        let pairs: Vec<(String, String)> = match one.len() == two.len() {
            true => one.into_iter().zip(two).collect(),
            false => vec![(one.join(", "), two.join(", "))],
        };
        for (one, two) in pairs.into_iter().filter(|(one, two)| one != two) {
            let new = Mismatch { kind: Kind::Events, first: one, second: two };
            if !differs.contains(&new) {
                differs.push(new);
            }
        }
    }
    differs
}

/// Splits events into those before the first update and those of each update.
fn updates(events: &[String]) -> Vec<String> {
    let mut updates: Vec<String> = Vec::new();
    for event in events {
        match updates.last_mut().filter(|_| event != "MIGRATION(setup)") {
            Some(update) => {
                update.push(' ');
                update.push_str(event);
            }
            None => updates.push(event.clone()),
        }
    }
    updates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Finding;
    use crate::run::verdict::Heard;

    fn report(verdict: Verdict, ended: &str, events: &[&str]) -> Report {
        let events = events.iter().map(|event| (*event).to_owned()).collect();
        Report {
            verdict,
            failed_updates: vec![FailedUpdate {
                what: "no command".into(),
                ended: ended.into(),
                error: "no".into(),
            }],
            heard: vec![Heard { step: "step 2 (stop)".into(), events }],
            ..Report::of("a/b", String::new(), String::new())
        }
    }

    fn told(first: &Report, second: &Report) -> Vec<String> {
        match compare(first, second) {
            Comparison::Compared(differs) => differs.iter().map(Mismatch::to_string).collect(),
            other => vec![format!("{other:?}")],
        }
    }

    #[test]
    fn equal_reports_have_no_differences() {
        let report = report(Verdict::Pass, "refused", &["STOP"]);
        assert_eq!(told(&report, &report), [""; 0]);
    }

    #[test]
    fn verdicts_endings_and_events_are_compared() {
        let passed = report(Verdict::Pass, "refused", &["STOP"]);
        let found = vec![Finding::new("pid", "it died"), Finding::new("ram", "it changed")];
        assert_eq!(
            told(&passed, &report(Verdict::Fail(found), "failed", &[])),
            [
                "verdict: pass | pid: it died",
                "verdict: pass | ram: it changed",
                "ending: refused: no | failed: no"
            ]
        );
        assert_eq!(
            told(&passed, &report(Verdict::Pass, "refused", &["STOP", "RESUME"])),
            ["events: STOP | STOP RESUME"]
        );
    }

    #[test]
    fn repeated_differences_are_reported_once() {
        let update = |end: &'static [&str]| [&["MIGRATION(setup)", "STOP"], end].concat();
        let (ours, theirs) = (update(&["RESUME"]), update(&["DEVICE", "RESUME"]));
        let [one, two] = [&ours, &theirs].map(|one| {
            let events = [&["RESET"], &one[..], &one[..]].concat();
            report(Verdict::Pass, "refused", &events)
        });
        assert_eq!(
            told(&one, &two),
            ["events: MIGRATION(setup) STOP RESUME | MIGRATION(setup) STOP DEVICE RESUME"]
        );
        let once = report(Verdict::Pass, "refused", &[&["RESET"], &ours[..]].concat());
        assert_eq!(
            told(&once, &one),
            [
                "events: RESET, MIGRATION(setup) STOP RESUME | RESET, MIGRATION(setup) STOP RESUME, MIGRATION(setup) STOP RESUME"
            ]
        );
    }

    #[test]
    fn different_failures_differ() {
        let fail = |why: &str| Verdict::Fail(vec![Finding::new("pid", why)]);
        let [one, two] = ["it died", "it is gone"].map(|why| report(fail(why), "failed", &[]));
        assert_eq!(told(&one, &two), ["verdict: pid: it died | pid: it is gone"]);
    }

    #[test]
    fn ignored_cases_are_not_compared() {
        let passed = report(Verdict::Pass, "refused", &[]);
        let ignored = report(Verdict::Ignored("no fail points".into()), "failed", &[]);
        let wanted = Comparison::Ignored("no fail points".into());
        assert_eq!(compare(&ignored, &passed), wanted);
        assert_eq!(compare(&passed, &ignored), wanted);
    }
}
