//! Prints an evidence folder as a timeline: what happened, when, and which source recorded it.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::case_text::details;
use super::folder::Folder;
use super::qmp_text::{Shortener, printable};
use crate::run::evidence::timeline::{Entry, SOURCES};
use crate::run::{Report, Verdict};

/// A line of the timeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Seconds since the start of the case.
    pub at: f64,
    /// Seconds since the previous row.
    pub delta: f64,
    /// The source that recorded it.
    pub source: String,
    /// The text, in one line.
    pub text: String,
}

/// A source that does not exist.
#[derive(Debug, thiserror::Error)]
#[error("unknown source `{wanted}`: expected {known}")]
pub struct UnknownSource {
    wanted: String,
    known: String,
}

/// The sources to show; empty: all.
#[derive(Clone, Debug, Default)]
pub struct Sources(Vec<String>);

impl Sources {
    /// Checks `wanted` against the known sources and those in `entries`.
    pub fn new(wanted: &[String], entries: &[Entry]) -> Result<Self, UnknownSource> {
        let mut known: Vec<&str> = SOURCES.to_vec();
        let seen: BTreeSet<&str> = entries.iter().map(|entry| entry.source.as_str()).collect();
        known.extend(seen.into_iter().filter(|source| !SOURCES.contains(source)));
        match wanted.iter().find(|wanted| !known.contains(&wanted.as_str())) {
            None => Ok(Self(wanted.to_vec())),
            Some(wanted) => Err(UnknownSource { wanted: wanted.clone(), known: known.join(", ") }),
        }
    }

    fn has(&self, source: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|wanted| wanted == source)
    }
}

/// Returns the timeline from the start of the case.
pub fn rows(entries: &[Entry], sources: &Sources) -> Vec<Row> {
    let began = entries.first().map_or(0.0, |entry| entry.t);
    let mut shortener = Shortener::default();
    let mut before = 0.0;
    let mut rows = Vec::new();
    for entry in entries {
        // A hidden entry may be the command that a reply belongs to.
        let text = shortener.short(entry);
        if sources.has(&entry.source) {
            let at = entry.t - began;
            rows.push(Row { at, delta: at - before, source: entry.source.clone(), text });
            before = at;
        }
    }
    rows
}

/// Returns the folder as lines, truncated to `width` if given.
pub fn lines(folder: &Folder, sources: &Sources, width: Option<usize>) -> Vec<String> {
    let mut lines = header(folder);
    lines.push(String::new());
    lines.push(format!("{:>12} {:>12}  {:<14}  text", "ms", "+ms", "source"));
    for Row { at, delta, source, text } in rows(&folder.timeline, sources) {
        let line = format!("{:>12.3} {:>12.3}  {source:<14}  {text}", at * 1e3, delta * 1e3);
        lines.push(cut(&line, width));
    }
    if folder.timeline.is_empty() {
        lines.push("the timeline is empty".to_owned());
    }
    lines
}

/// Returns the header: case, verdict, environment and notes.
pub fn header(folder: &Folder) -> Vec<String> {
    let summary = folder.case.as_ref().map(|case| format!(": {}", case.summary));
    let mut lines = vec![format!("{}{}", folder.name(), summary.unwrap_or_default())];
    match &folder.report {
        None => lines.push("no verdict".to_owned()),
        Some(report) => lines.extend(verdict(report)),
    }
    if let Some(start) = &folder.start {
        let kernel = format!("kernel {}", start.kernel);
        lines.push(format!(
            "{}, harness {}, {kernel}, {} CPUs, seed {}, {}",
            start.title(),
            start.harness,
            start.cpus,
            start.seed,
            date(start.started_unix)
        ));
        if !start.vmm_option.is_empty() {
            lines.push(format!("VMM options:{}", start.vmm_option));
        }
    }
    lines.extend(folder.problems.iter().map(|trouble| format!("note: {trouble}")));
    lines.iter().map(|line| printable(line)).collect()
}

/// Returns the verdict and its details.
fn verdict(report: &Report) -> Vec<String> {
    let took = format!("in {:.2} s", report.took.as_secs_f64());
    let first = match &report.verdict {
        Verdict::Pass => format!("passed {took}"),
        Verdict::Fail(_) => format!("FAILED {took}"),
        Verdict::Ignored(why) => format!("ignored: {why}"),
        Verdict::Broken(why) => format!("could not be run: {why}"),
    };
    let details = details(report);
    let details = details.iter().map(|line| format!("  {}", line.trim_start()));
    [first].into_iter().chain(details).collect()
}

/// Formats a time given in seconds since 1970.
pub fn date(unix: f64) -> String {
    let since = Duration::try_from_secs_f64(unix).unwrap_or_default();
    match SystemTime::UNIX_EPOCH.checked_add(since) {
        // The formatter supports years of up to four digits.
        Some(time) if unix < 253_402_300_800.0 => {
            humantime::format_rfc3339_seconds(time).to_string()
        }
        _ => format!("{unix} s after 1970"),
    }
}

fn cut(line: &str, width: Option<usize>) -> String {
    match width {
        Some(width) if line.chars().count() > width => {
            let kept: String = line.chars().take(width.saturating_sub(1)).collect();
            format!("{kept}…")
        }
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_are_too_long_are_cut() {
        assert_eq!(cut("äöüäöü", Some(4)), "äöü…");
        assert_eq!(cut("äöüä", Some(4)), "äöüä");
        assert_eq!(cut("äöüäöü", None), "äöüäöü");
    }

    #[test]
    fn any_recorded_time_is_printable() {
        assert_eq!(date(1_770_091_506.5), "2026-02-03T04:05:06Z");
        assert_eq!(date(-1.0), "1970-01-01T00:00:00Z");
        assert_eq!(date(1e300), format!("{} s after 1970", 1e300));
    }
}
