//! Renders the cases that did not pass, grouped by reason.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::super::record::{Entry, Record};
use super::parts::{Kind, anchor};
use super::plural;
use crate::run::Verdict;
use crate::run::signature::{Signature, without_variables};

/// Most cases of a group that are listed without expanding.
const MOST: usize = 10;

/// What the cases of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    /// The first finding, but for numbers and paths.
    Failed(Option<Signature>),
    /// What the host prevented, but for numbers and paths.
    Broken(String),
    /// The known differences.
    Known(String),
}

impl Reason {
    /// Returns the reason why a case did not pass, if so.
    fn of(entry: &Entry) -> Option<Self> {
        let known: Vec<&str> = entry.known.iter().map(String::as_str).collect();
        match &entry.report.verdict {
            Verdict::Fail(_) if !known.is_empty() => Some(Self::Known(known.join(", "))),
            Verdict::Fail(_) => Some(Self::Failed(Signature::of_report(&entry.report))),
            Verdict::Broken(why) => Some(Self::Broken(without_variables(why))),
            Verdict::Pass | Verdict::Ignored(_) => None,
        }
    }
}

/// Returns the groups: failures first, the largest first. Cases are sorted by name.
fn groups(cases: &[Entry]) -> Vec<Vec<&Entry>> {
    let mut groups: BTreeMap<Reason, Vec<&Entry>> = BTreeMap::new();
    for entry in cases {
        if let Some(reason) = Reason::of(entry) {
            groups.entry(reason).or_default().push(entry);
        }
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.iter_mut().for_each(|group| group.sort_by_key(|entry| &entry.report.case));
    groups.sort_by_key(|group| {
        (group.first().map(|entry| Kind::of(entry)), usize::MAX - group.len())
    });
    groups
}

/// Returns the first case of the first group.
pub fn first(record: &Record) -> Option<&Entry> {
    groups(&record.cases).first().and_then(|group| group.first().copied())
}

/// Renders the groups, if any case did not pass.
pub fn failures(record: &Record) -> Markup {
    let groups = groups(&record.cases);
    html! {
        @if !groups.is_empty() {
            section aria-labelledby="failures" {
                h2 id="failures" { "Cases that did not pass, by reason" }
                @for group in &groups { (self::group(group)) }
            }
        }
    }
}

fn group(group: &[&Entry]) -> Markup {
    let Some(example) = group.first() else { return html! {} };
    let kind = Kind::of(example);
    let list = |cases: &[&Entry]| {
        html! { ul.bad { @for entry in cases {
            li { a href=(format!("#{}", anchor(&entry.report.case))) { (entry.report.case) } }
        } } }
    };
    let (shown, more) = group.split_at(group.len().min(MOST));
    html! {
        div.group data-kind=(kind.class()) {
            p {
                strong class=(kind.class()) {
                    (kind.sign()) " " (group.len()) " " (plural(group.len(), "case"))
                }
                " " (message(example))
            }
            (list(shown))
            @if !more.is_empty() { details { summary { (more.len()) " more" } (list(more)) } }
        }
    }
}

/// Renders the reason of one case, as an example of its group.
fn message(entry: &Entry) -> Markup {
    let known: Vec<&str> = entry.known.iter().map(String::as_str).collect();
    html! {
        @match &entry.report.verdict {
            _ if !known.is_empty() => { "known difference: " (known.join(", ")) }
            Verdict::Fail(findings) => @if let Some(first) = findings.first() {
                strong { (first.check) } ": " (first.message)
            },
            Verdict::Broken(why) | Verdict::Ignored(why) => (why),
            Verdict::Pass => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Finding;
    use crate::run::Report;

    fn entry(case: &str, verdict: Verdict, known: &[&str]) -> Entry {
        Entry {
            summary: String::new(),
            theme: String::new(),
            evidence: None,
            run: 0,
            known: known.iter().map(|name| (*name).to_owned()).collect(),
            report: Report { verdict, ..Report::of(case, String::new(), String::new()) },
        }
    }

    #[test]
    fn groups_differ_by_check_and_words_but_not_by_numbers() {
        let fail = |check: &str, text: &str| Verdict::Fail(vec![Finding::new(check, text)]);
        let cases = [
            entry("b/passed", Verdict::Pass, &[]),
            entry("z/known", fail("ram", "changed"), &["a-difference"]),
            entry("z/broken", Verdict::Broken("no room in /tmp/x".into()), &[]),
            entry("c/pid", fail("pid", "PID 7 ended"), &[]),
            entry("b/fds", fail("fds", "descriptor 9 is new"), &[]),
            entry("a/fds", fail("fds", "descriptor 12 is new"), &[]),
            entry("d/fds", fail("fds", "descriptor 9 is gone"), &[]),
            entry("a/broken", Verdict::Broken("no room in /tmp/y".into()), &[]),
        ];
        let groups = groups(&cases);
        let names = groups.iter().map(|group| group.iter().map(|entry| &*entry.report.case));
        let names: Vec<Vec<&str>> = names.map(Iterator::collect).collect();
        assert_eq!(
            names,
            [
                vec!["a/fds", "b/fds"],
                vec!["d/fds"],
                vec!["c/pid"],
                vec!["a/broken", "z/broken"],
                vec!["z/known"],
            ]
        );
    }
}
