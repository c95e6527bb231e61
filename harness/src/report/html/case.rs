//! One case on the page.

use std::fs;
use std::path::Path;

use maud::{Markup, html};

use super::super::folder::Folder;
use super::super::record::{Entry, Run};
use super::super::show::{Row, Sources, rows};
use super::super::terminal::details;
use super::parts::{Kind, anchor, badge, ms, scrolling};
use super::{address, fd_diff, waterfall};
use crate::run::case::label;
use crate::run::{Report, Verdict};
use crate::scenario::write::of_step;

/// Characters of a line of the time line.
const LONGEST: usize = 300;
/// Updates of which the phases are shown: of a case that passed, and of another.
const UPDATES: (usize, usize) = (1, 5);
/// Lines of the time line on a page of its own.
const ALONE: usize = 5_000;

/// A case with what its evidence has to say.
pub struct View<'a> {
    /// The case.
    pub entry: &'a Entry,
    run: Option<&'a Run>,
    folder: Option<Folder>,
    /// The evidence folder's address, and its files.
    evidence: Option<(String, Vec<String>)>,
    rows: Vec<Row>,
    /// Lines of the time line that are left out, at the begin.
    left_out: usize,
    updates: usize,
}

impl<'a> View<'a> {
    /// A case of a run, for the page at `file`; if it failed, with `lines` of its time line.
    pub fn of_entry(entry: &'a Entry, run: Option<&'a Run>, file: &Path, lines: usize) -> Self {
        let folder = entry.evidence.as_deref().and_then(|path| Folder::read(path).ok());
        // Another run may have taken its place since.
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

    /// The case of `folder`, for a page of its own at `file`.
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
            // The folder has the rest; a page of many cases must not grow too large.
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
        // What went wrong is at the end.
        let left_out = all.len().saturating_sub(lines);
        all.drain(..left_out);
        Self { entry, run, folder, evidence, rows: all, left_out, updates }
    }

    /// As a part of the page that can be opened.
    pub fn details(&self) -> Markup {
        let report = &self.entry.report;
        let kind = Kind::of(self.entry);
        html! {
            details.case id=(anchor(&report.case)) data-kind=(kind.class()) {
                summary {
                    (badge(kind)) " " span.name { (report.case) }
                    @if !self.facts().is_empty() { " " span.quiet { (self.facts()) } }
                }
                @if !self.entry.summary.is_empty() { p { (self.entry.summary) } }
                (self.body())
            }
        }
    }

    /// Updates, blackout and time in a line.
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

    /// All that is known.
    pub fn body(&self) -> Markup {
        let report = &self.entry.report;
        let timeline = self.folder.as_ref().map_or(&[][..], |folder| &folder.timeline);
        html! {
            (self.verdict())
            (self.steps())
            (waterfall::waterfalls(report, timeline, self.updates))
            @if let Some(folder) = &self.folder { (fd_diff::diff(folder)) }
            (self.failed_updates())
            (self.to_type())
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
                    @if !known.is_empty() { p { "Known: " (known.join(", ")) } }
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

    /// The events of a step.
    fn heard(&self, label: &str) -> Markup {
        let heard = self.entry.report.heard.iter().find(|heard| heard.step == label);
        html! { @if let Some(heard) = heard { div.events { (events(&heard.events)) } } }
    }

    /// Where only the report is there.
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
                h4 { "Updates that did not succeed" }
                ul { @for update in failed {
                    li { (update.what) ", " (update.ended) ": " code { (update.error) } }
                } }
            }
        }
    }

    fn to_type(&self) -> Markup {
        let report = &self.entry.report;
        html! {
            @if !matches!(report.verdict, Verdict::Ignored(_)) {
                h4 { "To type" }
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
                    p.quiet { "Its evidence (" (run.vmm.title) ") is not here." }
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
            h4 { "Time line" }
            @if self.left_out > 0 {
                p.quiet { "The last " (self.rows.len()) " lines; " (self.left_out)
                    " before are in timeline.jsonl." }
            }
            (scrolling("time line", html! {
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

/// The evidence is closed a moment before the case is.
fn is_of_the_same_run(evidence: &Report, report: &Report) -> bool {
    Report { took: report.took, ..evidence.clone() } == *report
}

/// What `run` tells of a case besides its findings.
fn extra(report: &Report) -> Vec<String> {
    let passed = Report { verdict: Verdict::Pass, ..report.clone() };
    details(&passed).iter().map(|line| line.trim_start().to_owned()).collect()
}

fn events(events: &[String]) -> Markup {
    html! { @for event in events { span.event { (event) } " " } }
}
