//! Prints reports to a terminal, or as plain lines elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use terminal_size::{Width, terminal_size_of};

use super::case_text::{case_line, cut, findings};
use super::paint::verdict_first;
use super::progress::Progress;
use super::reasons;
use super::stdout::{as_shown, say};
use crate::check::gaps::Refusal;
use crate::observe::patience;
use crate::run::case::Stepped;
use crate::run::{Report, Verdict};

/// Prints each report as it arrives, and a summary at the end.
pub struct Terminal {
    bar: ProgressBar,
    progress: Progress,
    width: usize,
    /// The width of the terminal, if there is one.
    columns: Option<usize>,
    passed: usize,
    failed: Vec<Report>,
    /// Known differences and the number of cases that failed because of each.
    known: BTreeMap<String, usize>,
    known_cases: usize,
    broken: usize,
    /// Cases that did not begin or were interrupted.
    not_run: usize,
    ignored: BTreeMap<String, usize>,
    missed: bool,
    lost: usize,
    /// For each refused update: the largest heartbeat gap, relative to that of an idle period.
    ratios: Vec<f64>,
}

impl Terminal {
    /// Prepares for `total` cases whose names have at most `width` characters.
    pub fn new(total: usize, width: usize) -> Self {
        let bar = if std::io::stdout().is_terminal() {
            let style = ProgressStyle::with_template("{bar:16} {pos}/{len} {elapsed} {wide_msg}");
            ProgressBar::new(total as u64)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        } else {
            ProgressBar::hidden()
        };
        let columns = terminal_size_of(std::io::stdout()).map(|(Width(width), _)| width.into());
        Self {
            bar,
            progress: Progress::default(),
            width,
            columns,
            passed: 0,
            failed: Vec::new(),
            known: BTreeMap::new(),
            known_cases: 0,
            broken: 0,
            not_run: 0,
            ignored: BTreeMap::new(),
            missed: false,
            lost: 0,
            ratios: Vec::new(),
        }
    }

    /// Shows this progress below the cases.
    pub fn watch(&mut self, progress: Progress) {
        self.progress = progress;
    }

    /// Notes that a case began.
    pub fn began(&mut self, case: &str) {
        self.progress.began(case, Instant::now());
        self.refresh();
    }

    /// Shows the progress as it is now.
    pub fn refresh(&self) {
        if !self.bar.is_hidden() {
            self.bar.set_message(self.progress.line(Instant::now()));
        }
    }

    /// Prints a step that ended.
    pub fn step(&self, case: &str, step: &Stepped) {
        let Stepped { step, took, passed } = step;
        let failed = if *passed { "" } else { ", failed" };
        self.line(&format!("        {case}: {step}, {:.2} s{failed}", took.as_secs_f64()));
    }

    /// Notes how many cases did not begin or were interrupted.
    pub fn not_run(&mut self, count: usize) {
        self.not_run = count;
    }

    /// Prints a case that failed because of known differences of its VMM.
    pub fn known(&mut self, report: &Report, differences: BTreeSet<String>) {
        let names: Vec<&str> = differences.iter().map(String::as_str).collect();
        let names = names.join(", ");
        let line = format!("differs {:<width$}  {names}", report.case, width = self.width);
        self.line(&cut(line, self.columns));
        if report.kept.is_some() {
            findings(report).iter().for_each(|line| self.line(line));
        }
        self.count_known(report, differences);
    }

    /// Counts such a case without printing it.
    pub fn count_known(&mut self, report: &Report, differences: BTreeSet<String>) {
        self.ended(report, false);
        self.lost += usize::from(report.lost_its_vm());
        for name in differences {
            *self.known.entry(name).or_default() += 1;
        }
        self.known_cases += 1;
    }

    /// Prints a finished case.
    pub fn case(&mut self, report: Report) {
        self.line(&case_line(&report, self.width, self.columns));
        // What to do about a failure is printed once for each reason, at the end.
        for line in findings(&report) {
            self.line(&line);
        }
        self.count(report);
    }

    fn ended(&mut self, report: &Report, failed: bool) {
        self.bar.inc(1);
        self.progress.ended(&report.case, report.took, failed);
        self.refresh();
    }

    /// Counts a finished case without printing it.
    pub fn count(&mut self, report: Report) {
        self.ended(&report, matches!(report.verdict, Verdict::Fail(_)));
        self.lost += usize::from(report.lost_its_vm());
        self.ratios.extend(report.refusals.iter().map(Refusal::ratio));
        self.missed |= report.verdict.miss().is_some();
        match &report.verdict {
            Verdict::Pass => self.passed += 1,
            Verdict::Fail(_) => self.failed.push(report),
            Verdict::Ignored(why) => *self.ignored.entry(why.clone()).or_default() += 1,
            Verdict::Broken(_) => self.broken += 1,
        }
    }

    /// Prints the summary.
    pub fn finish(&self, took: Duration) {
        self.bar.finish_and_clear();
        say(self.summary(took));
    }

    /// Returns the summary of the run.
    pub fn summary(&self, took: Duration) -> String {
        let known = self.known_cases;
        let ran = self.passed + self.failed.len() + known;
        let mut text = format!("\n{ran} ran, {} passed, {} failed", self.passed, self.failed.len());
        if known > 0 {
            let names: Vec<String> =
                self.known.iter().map(|(name, count)| format!("{count}: {name}")).collect();
            text.push_str(&format!(", {known} with known differences ({})", names.join("; ")));
        }
        let ignored: usize = self.ignored.values().sum();
        let reasons: Vec<String> =
            self.ignored.iter().map(|(why, count)| format!("{count}: {why}")).collect();
        match reasons.as_slice() {
            [] => text.push_str(", 0 ignored"),
            reasons => text.push_str(&format!(", {ignored} ignored ({})", reasons.join("; "))),
        }
        if self.broken > 0 {
            text.push_str(&format!(", {} could not be run", self.broken));
        }
        if self.not_run > 0 {
            text.push_str(&format!(", {} not run", self.not_run));
        }
        text.push_str(&format!(", in {:.1} s", took.as_secs_f64()));
        text.push_str(&format!("\nVMs lost: {}", self.lost));
        text.extend(self.refusals());
        if let Some(why) = patience::why_unmeasured() {
            text.push_str(&format!("\n{why}: blackouts are not measured"));
        }
        if self.all_ignored() {
            text.push_str(&format!("\nno case ran: all {ignored} were ignored"));
        }
        if !self.failed.is_empty() {
            text.push_str("\nfailed:");
        }
        let reasons = reasons::of(&self.failed);
        text.extend(
            reasons.iter().flat_map(|reason| reason.lines()).map(|line| format!("\n{line}")),
        );
        text
    }

    /// Summarizes how much refused updates disturb guests.
    fn refusals(&self) -> Option<String> {
        let mut sorted = self.ratios.clone();
        sorted.sort_by(f64::total_cmp);
        let (median, max) = (sorted.get(sorted.len() / 2)?, sorted.last()?);
        Some(format!(
            "\nrefused updates measured: {}; largest heartbeat gap relative to an idle period: median {median:.2}, max {max:.2}",
            sorted.len()
        ))
    }

    /// True if a case failed.
    pub fn any_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// True if a case was ignored that could run on a better equipped host.
    pub fn any_missed(&self) -> bool {
        self.missed
    }

    /// True if there were cases and all of them were ignored, so there is no result.
    pub fn all_ignored(&self) -> bool {
        let ran = self.passed + self.failed.len() + self.known_cases + self.broken;
        ran == 0 && !self.ignored.is_empty()
    }

    /// True if the host prevented a case from running, or the run ended before it.
    pub fn any_broken(&self) -> bool {
        self.broken > 0 || self.not_run > 0
    }

    fn line(&self, line: &str) {
        let line = verdict_first(line);
        if self.bar.is_hidden() {
            say(line);
        } else {
            self.bar.println(as_shown(&line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Finding;
    use crate::report::case_text::tests::report;

    #[test]
    fn a_run_as_it_is_printed() {
        let reports = [
            report("update/running[cpus=1]", Verdict::Pass),
            report("update/stopped", Verdict::Fail(vec![Finding::new("ram", "guest RAM changed")])),
            report("update/huge", Verdict::Ignored("no huge pages here".into())),
            report("update/broken", Verdict::Broken("no room".into())),
        ];
        let mut terminal = Terminal::new(4, 24);
        let mut text = String::new();
        for report in reports {
            text.push_str(&case_line(&report, 24, None));
            text.push('\n');
            for line in findings(&report) {
                text.push_str(&line);
                text.push('\n');
            }
            terminal.case(report);
        }
        text.push_str(&terminal.summary(Duration::from_secs(3)));
        insta::assert_snapshot!(text);
    }
}
