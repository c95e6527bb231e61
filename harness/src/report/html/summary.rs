//! Renders the verdict of a run, what was tested, and the counts.

use std::collections::{BTreeMap, BTreeSet};

use maud::{Markup, html};

use super::super::record::Record;
use super::super::show::date;
use super::failures;
use super::parts::{Kind, anchor, ms};
use super::plural;
use crate::run::Verdict;

fn count(record: &Record, kind: Kind) -> usize {
    record.cases.iter().filter(|entry| Kind::of(entry) == kind).count()
}

/// Returns the result of the run: what its exit status says, in a line.
pub fn title(record: &Record) -> String {
    let all = record.cases.len();
    let cases = |count: usize| format!("{count} {}", plural(count, "case"));
    match (count(record, Kind::Failed), count(record, Kind::Broken)) {
        (0, 0) if count(record, Kind::Ignored) == all => "No result: no case was run".to_owned(),
        (0, 0) => format!("Passed: {}, none failed", cases(all)),
        (0, broken) => format!("Incomplete: {broken} of {} could not be run", cases(all)),
        (failed, 0) => format!("Failed: {failed} of {}", cases(all)),
        (failed, broken) => {
            format!("Failed: {failed} of {}, {broken} could not be run", cases(all))
        }
    }
}

/// Renders the verdict, with a link to the first case that did not pass.
pub fn verdict(record: &Record) -> Markup {
    let kinds = [Kind::Failed, Kind::Broken];
    let kind = kinds.into_iter().find(|kind| count(record, *kind) > 0);
    let ran = count(record, Kind::Ignored) < record.cases.len();
    let kind = kind.unwrap_or(if ran { Kind::Passed } else { Kind::Ignored });
    html! {
        h1 class=(format!("verdict {}", kind.class())) { (kind.sign()) " " (title(record)) }
        @if let (Some(first), true) = (failures::first(record), kinds.contains(&kind)) {
            p { a id="first" href=(format!("#{}", anchor(&first.report.case))) {
                "↓ First failure: " (first.report.case)
            } }
        }
    }
}

/// Renders a warning that bugs were planted in the VMM, if so.
pub fn planted(record: &Record) -> Markup {
    let planted: BTreeSet<String> = record.runs.iter().flat_map(|run| run.planted()).collect();
    html! {
        @if !planted.is_empty() {
            p.planted role="note" {
                strong { "This run had a bug planted: " }
                @for (index, words) in planted.iter().enumerate() {
                    @if index > 0 { ", " }
                    code { (words) }
                }
                ". It shows whether the bug is noticed, not how good the VMM is."
            }
        }
    }
}

/// Renders what the runs were run on: a line each, and all that is known when opened.
pub fn runs(record: &Record) -> Markup {
    html! {
        @for run in &record.runs {
            details.tested {
                summary.quiet {
                    strong { (run.vmm.title) }
                    " · harness " (run.harness) " · kernel " (run.kernel) " · " (run.cpus) " "
                    (plural(run.cpus, "CPU")) " · " (date(run.started_unix)) " · "
                    (format!("{:.1}\u{a0}s", run.took.as_secs_f64()))
                }
                dl.facts {
                    @for (name, fact) in run.facts() {
                        dt { (name) }
                        dd { @if name == "command" { pre.line { (fact) } } @else { (fact) } }
                    }
                }
            }
        }
    }
}

/// Renders the counts.
pub fn summary(record: &Record) -> Markup {
    let count = |kind| count(record, kind);
    let lost = record.cases.iter().filter(|entry| entry.report.lost_its_vm()).count();
    let updates: u32 = record.cases.iter().map(|entry| entry.report.updates).sum();
    let mut blackouts: Vec<_> =
        record.cases.iter().flat_map(|entry| entry.report.blackouts.iter().copied()).collect();
    blackouts.sort();
    let median = blackouts.get(blackouts.len() / 2);
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
        }
    }
}

/// Renders the reasons for which cases were ignored.
pub fn ignored(record: &Record) -> Markup {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in &record.cases {
        if let Verdict::Ignored(why) = &entry.report.verdict {
            *reasons.entry(why).or_default() += 1;
        }
    }
    html! {
        @if !reasons.is_empty() {
            section aria-labelledby="ignored" {
                h2 id="ignored" { "Ignored cases by reason" }
                ul { @for (why, count) in reasons { li { (count) ": " (why) } } }
            }
        }
    }
}

fn figure(name: &str, count: usize, kind: Kind) -> Markup {
    let class = if count > 0 { kind.class() } else { "" };
    html! { div { dt { (name) } dd class=[(!class.is_empty()).then_some(class)] { (count) } } }
}
