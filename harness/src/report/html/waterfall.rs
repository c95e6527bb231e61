//! Renders the phases of updates as waterfall charts.

use std::time::Duration;

use maud::{Markup, html};
use serde_json::Value;

use super::parts::{bar, ms};
use crate::observe::phases::UpdatePhases;
use crate::run::Report;
use crate::run::evidence::timeline::Entry;

/// One update; times are in seconds since its start.
#[derive(Debug, PartialEq)]
struct Update {
    title: String,
    spans: Vec<Span>,
}

#[derive(Debug, PartialEq)]
struct Span {
    name: String,
    begin: f64,
    end: f64,
}

impl Update {
    fn took(&self) -> f64 {
        self.spans.last().map_or(0.0, |span| span.end)
    }
}

/// Renders the updates of a case; if there are more than `most`, the longest.
pub fn waterfalls(report: &Report, timeline: &[Entry], most: usize) -> Markup {
    // Falls back to events for a VMM that does not report phases.
    let (mut updates, of_events) = match report.phases.as_slice() {
        [] => (by_events(timeline), true),
        phases => (phases.iter().enumerate().map(by_phases).collect(), false),
    };
    let all = updates.len();
    if all > most {
        updates.sort_by(|a, b| b.took().total_cmp(&a.took()));
        updates.truncate(most);
    }
    if updates.is_empty() {
        return html! {};
    }
    html! {
        h4 { "Phases" }
        @if of_events { p.quiet { "Derived from QMP events: the VMM reports no phases." } }
        @if all > updates.len() { p.quiet { "The longest of " (all) " updates." } }
        @for update in &updates { (waterfall(update)) }
    }
}

fn waterfall(update: &Update) -> Markup {
    let whole = update.took().max(1e-9);
    let time = |seconds: f64| ms(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    html! {
        table.bars {
            caption { (update.title) ": " (time(update.took())) }
            tbody {
                @for (index, span) in update.spans.iter().enumerate() {
                    tr {
                        th scope="row" { (span.name) }
                        td.wide { (bar(&format!("p{}", index % 5), span.begin / whole, span.end / whole)) }
                        td { (time(span.end - span.begin)) }
                    }
                }
            }
        }
    }
}

fn by_phases((index, update): (usize, &UpdatePhases)) -> Update {
    let begin = update.begin();
    let from_begin = |time: Duration| time.saturating_sub(begin).as_secs_f64();
    let spans = update.spans.iter().map(|span| Span {
        name: span.phase.name().to_owned(),
        begin: from_begin(span.begin),
        end: from_begin(span.end),
    });
    Update { title: format!("update {}", index + 1), spans: spans.collect() }
}

/// Returns the spans between consecutive events of each update, from `migrate` on.
fn by_events(timeline: &[Entry]) -> Vec<Update> {
    let mut updates: Vec<Update> = Vec::new();
    let mut open: Option<(f64, f64)> = None;
    for entry in timeline {
        let Ok(message) = serde_json::from_str::<Value>(&entry.text) else { continue };
        if entry.source == "qmp-sent" && message.get("execute").is_some_and(|c| c == "migrate") {
            updates.push(Update { title: format!("update {}", updates.len() + 1), spans: vec![] });
            open = Some((entry.t, entry.t));
            continue;
        }
        let (Some((begin, last)), "qmp-received") = (open, entry.source.as_str()) else { continue };
        let Some(name) = event(&message) else { continue };
        if let Some(update) = updates.last_mut() {
            let span =
                Span { name: format!("to {name}"), begin: last - begin, end: entry.t - begin };
            update.spans.push(span);
        }
        open = Some((begin, entry.t));
        if ["MIGRATION completed", "MIGRATION failed"].contains(&name.as_str()) {
            open = None;
        }
    }
    updates.retain(|update| !update.spans.is_empty());
    updates
}

/// Returns the name of an event if it is part of an update.
fn event(message: &Value) -> Option<String> {
    match message.get("event")?.as_str()? {
        name @ ("STOP" | "RESUME") => Some(name.to_owned()),
        "MIGRATION" => Some(format!("MIGRATION {}", message.pointer("/data/status")?.as_str()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_stand_in_for_phases() {
        let entry = |t: f64, source: &str, text: &str| Entry {
            t,
            source: source.into(),
            text: text.into(),
        };
        let timeline = [
            entry(1.0, "qmp-received", r#"{"event":"STOP"}"#),
            entry(2.0, "qmp-sent", r#"{"execute":"migrate"}"#),
            entry(2.5, "qmp-received", r#"{"event":"MIGRATION","data":{"status":"active"}}"#),
            entry(2.6, "qmp-2-received", r#"{"event":"STOP"}"#),
            entry(3.0, "qmp-received", r#"{"event":"STOP"}"#),
            entry(4.0, "qmp-received", r#"{"event":"MIGRATION","data":{"status":"completed"}}"#),
            entry(5.0, "qmp-received", r#"{"event":"RESUME"}"#),
        ];
        let updates = by_events(&timeline);
        let told: Vec<String> = updates[0]
            .spans
            .iter()
            .map(|span| format!("{} {} {}", span.name, span.begin, span.end))
            .collect();
        assert_eq!(
            (updates.len(), told.join(", ")),
            (1, "to MIGRATION active 0 0.5, to STOP 0.5 1, to MIGRATION completed 1 2".to_owned())
        );
    }
}
