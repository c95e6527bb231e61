//! Renders one case.

use std::fs;
use std::path::Path;

use maud::{Markup, html};

use super::super::case_text::details;
use super::super::folder::Folder;
use super::super::record::Entry;
use super::super::show::{Row, Sources, rows};
use super::super::tested::Run;
use super::events::events;
use super::parts::{Kind, anchor, badge, ms, scrolling};
use super::{address, fd_diff, waterfall};
use crate::run::case::label;
use crate::run::{Report, Verdict};
use crate::scenario::write::of_step;

/// Most characters of a timeline entry.
const LONGEST: usize = 300;
/// Most updates whose phases are shown: for a case that passed, and for any other.
const UPDATES: (usize, usize) = (1, 5);
/// Most timeline entries on the page of a single case.
const ALONE: usize = 5_000;

/// A case with its evidence.
pub struct View<'a> {
    /// The case.
    pub entry: &'a Entry,
    run: Option<&'a Run>,
    folder: Option<Folder>,
    /// The URL of the evidence folder, and its files.
    evidence: Option<(String, Vec<String>)>,
    rows: Vec<Row>,
    /// Number of timeline entries omitted at the beginning.
    left_out: usize,
    updates: usize,
}

impl<'a> View<'a> {
    /// Creates the view of a case for the page at `file`; if it failed, with at most `lines`
    /// timeline entries.
    pub fn of_entry(entry: &'a Entry, run: Option<&'a Run>, file: &Path, lines: usize) -> Self {
        let folder = entry.evidence.as_deref().and_then(|path| Folder::read(path).ok());
        // A later run may have overwritten the evidence.
        let folder = folder.filter(|folder| {
            folder.name() == entry.report.case
                && folder
                    .report
                    .as_ref()
                    .is_none_or(|report| is_of_the_same_run(report, &entry.report))
        });
        let (lines, updates) = match super::is_bad(entry) {
            true => (lines, UPDATES.1),
            false => (0, UPDATES.0),
        };
        Self::new(entry, run, folder, &Sources::default(), file, (lines, updates))
    }

    /// Creates the view of the case in `folder`, for a page of its own at `file`.
    pub fn of_folder(
        entry: &'a Entry,
        run: Option<&'a Run>,
        folder: &Folder,
        sources: &Sources,
        file: &Path,
    ) -> Self {
        Self::new(entry, run, Some(folder.clone()), sources, file, (ALONE, usize::MAX))
    }

    fn new(
        entry: &'a Entry,
        run: Option<&'a Run>,
        folder: Option<Folder>,
        sources: &Sources,
        file: &Path,
        (lines, updates): (usize, usize),
    ) -> Self {
        let evidence = folder.as_ref().map(|folder| {
            // Listed only where the timeline is shown, to limit the size of a page of many cases.
            let listed = (lines > 0).then(|| fs::read_dir(&folder.path));
            let files = listed.into_iter().flatten().flatten().flatten();
            let mut files: Vec<String> =
                files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
            files.sort();
            (address(file, &folder.path), files)
        });
        let mut all = match (&folder, lines) {
            (None, _) | (_, 0) => Vec::new(),
            (Some(folder), _) => rows(&folder.timeline, sources),
        };
        // Keeps the last entries: failures are at the end.
        let left_out = all.len().saturating_sub(lines);
        all.drain(..left_out);
        Self { entry, run, folder, evidence, rows: all, left_out, updates }
    }

    /// Renders the case as a collapsible section.
    pub fn details(&self) -> Markup {
        let report = &self.entry.report;
        let kind = Kind::of(self.entry);
        html! {
            details.case id=(anchor(&report.case)) data-kind=(kind.class())
                data-rank=(kind as usize) data-took=(report.took.as_micros())
                data-blackout=[report.blackout().map(|(_, max)| max.as_micros())] {
                summary {
                    (badge(kind)) " "
                    @if self.run.is_some_and(|run| !run.planted().is_empty()) {
                        span.badge.known { "bug planted" } " "
                    }
                    span.name { (report.case) }
                    @if !self.facts().is_empty() { " " span.quiet { (self.facts()) } }
                }
                @if !self.entry.summary.is_empty() { p { (self.entry.summary) } }
                (self.body())
            }
        }
    }

    /// Returns updates, blackout and duration in a line.
    fn facts(&self) -> String {
        let report = &self.entry.report;
        if matches!(report.verdict, Verdict::Ignored(_) | Verdict::Broken(_)) {
            return String::new();
        }
        let updates = match report.updates {
            1 => "1 update".to_owned(),
            n => format!("{n} updates"),
        };
        let blackout = report.blackout().map(|(_, max)| format!("blackout {}", ms(max)));
        let revivals = (!report.revivals.is_empty()).then(|| {
            let longest = report.blackout_of_revivals().map(|(_, max)| format!(" ({})", ms(max)));
            format!("{} revivals{}", report.revivals.len(), longest.unwrap_or_default())
        });
        let took = format!("{:.2} s", report.took.as_secs_f64());
        [Some(updates), blackout, revivals, Some(took)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" · ")
    }

    /// Renders everything that is known about the case.
    pub fn body(&self) -> Markup {
        let report = &self.entry.report;
        let timeline = self.folder.as_ref().map_or(&[][..], |folder| &folder.timeline);
        html! {
            (self.verdict())
            (self.steps())
            (waterfall::waterfalls(report, timeline, self.updates))
            @if let Some(folder) = &self.folder { (fd_diff::diff(folder)) }
            (self.failed_updates())
            (self.repro_commands())
            (self.files())
            (self.timeline())
        }
    }

    fn verdict(&self) -> Markup {
        let report = &self.entry.report;
        let known: Vec<&str> = self.entry.known.iter().map(String::as_str).collect();
        html! {
            @match &report.verdict {
                Verdict::Pass => {}
                Verdict::Ignored(why) | Verdict::Broken(why) => p { (why) },
                Verdict::Fail(findings) => {
                    @if !known.is_empty() { p { "Known differences: " (known.join(", ")) } }
                    @if let Some(step) = &report.failed_step { p { "Failed at " strong { (step) } ":" } }
                    ul.findings { @for f in findings { li { strong { (f.check) } ": " (f.message) } } }
                }
            }
            @for line in extra(report) { p.quiet { (line) } }
        }
    }

    fn steps(&self) -> Markup {
        let Some(case) = self.folder.as_ref().and_then(|folder| folder.case.as_ref()) else {
            return self.heard_alone();
        };
        let report = &self.entry.report;
        let labels: Vec<String> =
            case.steps.iter().enumerate().map(|(index, step)| label(index, step)).collect();
        let failed = report.failed_step.as_ref();
        let failed = failed.and_then(|failed| labels.iter().position(|label| label == failed));
        html! {
            h4 { "Steps" }
            ol.steps {
                @for (index, (step, label)) in case.steps.iter().zip(&labels).enumerate() {
                    @let text = of_step(step);
                    li {
                        @match failed {
                            Some(failed) if index == failed => { strong.fail { "✗ failed " } }
                            Some(failed) if index > failed => { span.quiet { "– not reached " } }
                            _ => {}
                        }
                        code { (text.trim_matches('"')) }
                        (self.heard(label))
                    }
                }
            }
        }
    }

    /// Renders the events of a step.
    fn heard(&self, label: &str) -> Markup {
        let heard = self.entry.report.heard.iter().find(|heard| heard.step == label);
        html! { @if let Some(heard) = heard { div.events { (events(&heard.events)) } } }
    }

    /// Renders the events of all steps, if only the report is available.
    fn heard_alone(&self) -> Markup {
        let heard = &self.entry.report.heard;
        html! {
            @if !heard.is_empty() {
                h4 { "Events" }
                ul.steps { @for step in heard { li { (step.step) div.events { (events(&step.events)) } } } }
            }
        }
    }

    fn failed_updates(&self) -> Markup {
        let failed = &self.entry.report.failed_updates;
        html! {
            @if !failed.is_empty() {
                h4 { "Refused and failed updates" }
                ul { @for update in failed {
                    li { (update.what) ", " (update.ended) ": " code { (update.error) } }
                } }
            }
        }
    }

    fn repro_commands(&self) -> Markup {
        let report = &self.entry.report;
        html! {
            @if !matches!(report.verdict, Verdict::Ignored(_)) {
                h4 { "Commands" }
                @for line in [&report.replay, &report.show].into_iter().filter(|line| !line.is_empty()) {
                    pre.line { (line) }
                }
            }
        }
    }

    fn files(&self) -> Markup {
        html! {
            @if let Some((address, files)) = &self.evidence {
                h4 { "Evidence" }
                p.files {
                    a href=(format!("{address}/")) { "folder" }
                    @for file in files { " " a href=(format!("{address}/{file}")) { (file) } }
                }
            } @else if let Some(run) = self.run {
                @if self.entry.evidence.is_some() {
                    p.quiet { "Its evidence (" (run.vmm.title) ") is not available." }
                }
            }
        }
    }

    fn timeline(&self) -> Markup {
        if self.rows.is_empty() {
            return html! {};
        }
        let cut = |text: &str| match text.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text.to_owned(),
        };
        html! {
            h4 { "Timeline" }
            @if self.left_out > 0 {
                p.quiet { "The last " (self.rows.len()) " entries; " (self.left_out)
                    " earlier ones are in timeline.jsonl." }
            }
            (scrolling("timeline", html! {
                table.timeline {
                    thead { tr {
                        th.number scope="col" { "ms" } th.number scope="col" { "+ms" }
                        th scope="col" { "source" } th scope="col" { "text" }
                    } }
                    tbody {
                        @for row in &self.rows {
                            tr class=(format!("s-{}", row.source.split('-').next().unwrap_or_default())) {
                                td.number { (format!("{:.3}", row.at * 1e3)) }
                                td.number { (format!("{:.3}", row.delta * 1e3)) }
                                td.nowrap { (row.source) }
                                td { (cut(&row.text)) }
                            }
                        }
                    }
                }
            }))
        }
    }
}

/// True if both are equal except for the duration: the evidence is closed just before the case.
fn is_of_the_same_run(evidence: &Report, report: &Report) -> bool {
    Report { took: report.took, ..evidence.clone() } == *report
}

/// Returns what `run` prints about a case besides its findings.
fn extra(report: &Report) -> Vec<String> {
    let passed = Report { verdict: Verdict::Pass, ..report.clone() };
    details(&passed).iter().map(|line| line.trim_start().to_owned()).collect()
}
