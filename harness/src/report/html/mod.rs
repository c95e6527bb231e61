//! Renders a run, or one case, as a self-contained HTML page.

mod case;
mod distribution;
mod events;
mod failures;
mod fd_diff;
mod matrix;
mod parts;
mod summary;
mod waterfall;

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest, Sha256};

use super::folder::Folder;
use super::record::{Entry, Record, from_file, theme};
use super::show::Sources;
use super::tested::Run;
use crate::run::Verdict;
use case::View;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Timeline entries on one page, shared by the failed cases.
const TIMELINE_LINES: usize = 10_000;
/// Fewest timeline entries for each failed case.
const LEAST_LINES: usize = 20;
/// Number of cases up to which all themes are expanded initially.
const FEW: usize = 60;

/// Renders the page of a run, to be written to `file`; details are read from the evidence folders.
pub fn page(record: &Record, file: &Path) -> String {
    let failed = record.cases.iter().filter(|entry| entry.failed()).count();
    let share = (TIMELINE_LINES / failed.max(1)).max(LEAST_LINES);
    let views: Vec<View> = record
        .cases
        .iter()
        .map(|entry| View::of_entry(entry, record.runs.get(entry.run), file, share))
        .collect();
    let mut themes: Vec<&str> = Vec::new();
    for entry in &record.cases {
        if !themes.contains(&entry.theme.as_str()) {
            themes.push(&entry.theme);
        }
    }
    // Failures come first.
    let of_theme = |theme: &str| -> Vec<&View> {
        let mut of: Vec<&View> = views.iter().filter(|view| view.entry.theme == theme).collect();
        of.sort_by_key(|view| (!is_bad(view.entry), &view.entry.report.case));
        of
    };
    let title = summary::title(record);
    let body = html! {
        header {
            (summary::verdict(record))
            (summary::planted(record))
            (summary::runs(record))
            nav aria-label="sections" {
                @for (id, name) in [("matrix", "Matrix"), ("cases", "Cases")] {
                    a href=(format!("#{id}")) { (name) } " "
                }
            }
        }
        main {
            (summary::summary(record))
            (failures::failures(record))
            (distribution::distribution(&themes, &record.cases))
            (matrix::matrix(&themes, &record.cases))
            (summary::ignored(record))
            section aria-labelledby="cases" {
                h2 id="cases" { "Cases" }
                (controls())
                div id="sorted" hidden {}
                @for theme in &themes {
                    @let views = of_theme(theme);
                    @let failed = views.iter().filter(|view| view.entry.failed()).count();
                    details.theme open[failed > 0 || record.cases.len() <= FEW] {
                        summary {
                            h3 { (theme) }
                            " " (views.len()) " " (plural(views.len(), "case"))
                            @if failed > 0 { ", " strong.fail { (failed) " failed" } }
                        }
                        @for view in views { (view.details()) }
                    }
                }
            }
        }
    };
    document(&title, body)
}

/// Renders the page of one case, to be written to `file`.
pub fn case_page(folder: &Folder, sources: &Sources, file: &Path) -> String {
    let report = folder.report_or_broken();
    let run = folder.start.as_ref().map(|start| Run::of(start, report.took));
    let entry = Entry {
        summary: folder.case.as_ref().map(|case| case.summary.clone()).unwrap_or_default(),
        theme: theme(&report.case).to_owned(),
        evidence: Some(folder.path.clone()),
        run: 0,
        known: Default::default(),
        report,
    };
    let view = View::of_folder(&entry, run.as_ref(), folder, sources, file);
    let record = Record::of(run.clone().into_iter().collect());
    let name = &entry.report.case;
    let body = html! {
        header {
            h1 { (parts::badge(parts::Kind::of(&entry))) " " (name) }
            @if !entry.summary.is_empty() { p { (entry.summary) } }
            (summary::planted(&record))
            (summary::runs(&record))
            @if let Some(start) = &folder.start {
                p.quiet { "seed " (start.seed) }
            }
            @for trouble in &folder.problems { p.trouble { (trouble) } }
        }
        main { article { (view.body()) } }
    };
    document(name, body)
}

/// Renders the controls to search, sort and filter, which the script makes visible.
fn controls() -> Markup {
    html! {
        form.controls id="controls" hidden {
            label { "Search " input type="search" id="text" placeholder="name, check, message"; }
            label { "Sort by " select id="sort" {
                option value="" { "theme" }
                option value="name" { "name" }
                option value="verdict" { "verdict" }
                option value="took" { "duration" }
                option value="blackout" { "blackout" }
            } }
            label { input type="checkbox" id="only-failed"; " only cases that did not pass" }
            output id="shown" aria-live="polite" {}
        }
    }
}

fn document(title: &str, body: Markup) -> String {
    let hash = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; img-src data:; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    );
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                (body)
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
    .into_string()
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { noun.to_owned() } else { format!("{noun}s") }
}

/// Returns `path` as a URL relative to the page at `file`.
fn address(file: &Path, path: &Path) -> String {
    let path = from_file(file, path);
    let mut address = String::new();
    for byte in path.to_string_lossy().bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => address.push(byte.into()),
            b'/' | b'.' | b'-' | b'_' | b',' | b'=' | b'+' | b'~' => address.push(byte.into()),
            other => address.push_str(&format!("%{other:02X}")),
        }
    }
    address
}

/// True if the case failed or could not be run, known differences included.
fn is_bad(entry: &Entry) -> bool {
    matches!(entry.report.verdict, Verdict::Fail(_) | Verdict::Broken(_))
}
