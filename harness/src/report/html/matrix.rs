//! Renders the overview of all cases: one row per scenario, one cell per case.

use maud::{Markup, html};

use super::super::record::Entry;
use super::parts::{Kind, anchor};
use crate::scenario::choice;

/// Renders the cells, grouped by theme.
pub fn matrix(themes: &[&str], cases: &[Entry]) -> Markup {
    html! {
        section aria-labelledby="matrix" {
            h2 id="matrix" { "Matrix" }
            p.quiet.legend {
                @for kind in Kind::ALL {
                    span { span class=(format!("cell {}", kind.class())) aria-hidden="true" { (kind.sign()) } " " (kind.name()) }
                    " "
                }
            }
            div.themes {
                @for theme in themes {
                    div.theme-cells {
                        h3 { (theme) }
                        @for (scenario, entries) in scenarios(theme, cases) {
                            div.row {
                                span.scenario { (scenario.split_once('/').map_or(scenario.as_str(), |(_, name)| name)) }
                                span.cells { @for entry in entries { (cell(entry)) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns the cases of a theme, grouped by scenario and sorted by name.
fn scenarios<'a>(theme: &str, cases: &'a [Entry]) -> Vec<(String, Vec<&'a Entry>)> {
    let mut scenarios: Vec<(String, Vec<&Entry>)> = Vec::new();
    for entry in cases.iter().filter(|entry| entry.theme == theme) {
        let (name, _) = choice::split(&entry.report.case);
        match scenarios.iter_mut().find(|(other, _)| *other == name) {
            Some((_, entries)) => entries.push(entry),
            None => scenarios.push((name, vec![entry])),
        }
    }
    for (_, entries) in &mut scenarios {
        entries.sort_by(|a, b| a.report.case.cmp(&b.report.case));
    }
    scenarios.sort_by(|(a, _), (b, _)| a.cmp(b));
    scenarios
}

fn cell(entry: &Entry) -> Markup {
    let kind = Kind::of(entry);
    let label = format!("{}: {}", entry.report.case, kind.name());
    html! {
        a class=(format!("cell {}", kind.class())) href=(format!("#{}", anchor(&entry.report.case)))
            title=(label) aria-label=(label) { (kind.sign()) }
    }
}
