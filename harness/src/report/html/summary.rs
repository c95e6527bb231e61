//! Renders the summary of a run.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::super::record::{Entry, Record};
use super::super::show::date;
use super::parts::{Kind, anchor, ms};
use super::plural;
use crate::run::Verdict;

/// Most bad cases that are listed without expanding.
const MOST: usize = 20;

/// Returns the result of the run in a line.
pub fn title(record: &Record) -> String {
    let count = record.cases.len();
    let bad = |kind| record.cases.iter().filter(|entry| Kind::of(entry) == kind).count();
    let cases = format!("{count} {}", plural(count, "case"));
    match (bad(Kind::Failed), bad(Kind::Broken)) {
        (0, 0) => format!("{cases}, none failed"),
        (0, broken) => format!("{cases}, none failed, {broken} could not be run"),
        (failed, 0) => format!("{cases}, {failed} failed"),
        (failed, broken) => format!("{cases}, {failed} failed, {broken} could not be run"),
    }
}

/// Renders what the runs were run on, one line each.
pub fn runs(record: &Record) -> Markup {
    html! {
        @for run in &record.runs {
            p.quiet {
                strong { (run.vmm.title) }
                " · harness " (run.harness) " · kernel " (run.kernel) " · " (run.cpus) " "
                (plural(run.cpus, "CPU")) " · " (date(run.started_unix)) " · "
                (format!("{:.1}\u{a0}s", run.took.as_secs_f64()))
            }
        }
    }
}

/// Renders the counts and the cases that did not pass.
pub fn summary(record: &Record) -> Markup {
    let count = |kind| record.cases.iter().filter(|entry| Kind::of(entry) == kind).count();
    let lost = record.cases.iter().filter(|entry| entry.report.lost_its_vm()).count();
    let updates: u32 = record.cases.iter().map(|entry| entry.report.updates).sum();
    let mut blackouts: Vec<_> =
        record.cases.iter().flat_map(|entry| entry.report.blackouts.iter().copied()).collect();
    blackouts.sort();
    let median = blackouts.get(blackouts.len() / 2);
    let mut bad: Vec<_> = record.cases.iter().filter(|entry| super::is_bad(entry)).collect();
    bad.sort_by_key(|entry| &entry.report.case);
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in &record.cases {
        if let Verdict::Ignored(why) = &entry.report.verdict {
            *reasons.entry(why).or_default() += 1;
        }
    }
    html! {
        section aria-labelledby="summary" {
            h2 id="summary" { "Summary" }
            dl.figures {
                @for kind in [Kind::Passed, Kind::Failed] { (figure(kind.name(), count(kind), kind)) }
                @for kind in [Kind::Known, Kind::Broken, Kind::Ignored] {
                    @if count(kind) > 0 { (figure(kind.name(), count(kind), kind)) }
                }
                (figure("VMs lost", lost, if lost > 0 { Kind::Failed } else { Kind::Passed }))
                @if !record.not_run.is_empty() { (figure("not run", record.not_run.len(), Kind::Broken)) }
                div { dt { "updates" } dd { (updates) } }
                @if let (Some(median), Some(max)) = (median, blackouts.last()) {
                    div { dt { "blackout, median" } dd { (ms(*median)) } }
                    div { dt { "blackout, longest" } dd { (ms(*max)) } }
                }
            }
            @if !bad.is_empty() {
                h3 { "Cases that did not pass" }
                (bad_list(bad.iter().take(MOST)))
                @if bad.len() > MOST {
                    details {
                        summary { (bad.len() - MOST) " more" }
                        (bad_list(bad.iter().skip(MOST)))
                    }
                }
            }
            @if !reasons.is_empty() {
                h3 { "Ignored cases by reason" }
                ul { @for (why, count) in reasons { li { (count) ": " (why) } } }
            }
        }
    }
}

fn bad_list<'a>(bad: impl Iterator<Item = &'a &'a Entry>) -> Markup {
    html! {
        ul.bad {
            @for entry in bad {
                @let kind = Kind::of(entry);
                li {
                    span class=(kind.class()) { (kind.sign()) } " "
                    a href=(format!("#{}", anchor(&entry.report.case))) { (entry.report.case) }
                    " " span.quiet { (first_line(&entry.report.verdict)) }
                }
            }
        }
    }
}

fn figure(name: &str, count: usize, kind: Kind) -> Markup {
    let class = if count > 0 { kind.class() } else { "" };
    html! { div { dt { (name) } dd class=[(!class.is_empty()).then_some(class)] { (count) } } }
}

fn first_line(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Fail(findings) => findings.first().map(ToString::to_string).unwrap_or_default(),
        Verdict::Broken(why) => why.clone(),
        Verdict::Pass | Verdict::Ignored(_) => String::new(),
    }
}
