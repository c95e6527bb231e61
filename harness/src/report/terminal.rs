//! Prints reports to a terminal, or as plain lines elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::paint::verdict_first;
use super::stdout::{as_shown, say};
use crate::check::gaps::Refusal;
use crate::run::verdict::Kill;
use crate::run::{Report, Verdict};

/// Prints each report as it arrives, and a summary at the end.
pub struct Terminal {
    bar: ProgressBar,
    width: usize,
    passed: usize,
    failed: Vec<Report>,
    /// Known differences and the number of cases that failed because of each.
    known: BTreeMap<String, usize>,
    known_cases: usize,
    broken: usize,
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
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed} {msg}");
            ProgressBar::new(total as u64)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        } else {
            ProgressBar::hidden()
        };
        Self {
            bar,
            width,
            passed: 0,
            failed: Vec::new(),
            known: BTreeMap::new(),
            known_cases: 0,
            broken: 0,
            ignored: BTreeMap::new(),
            missed: false,
            lost: 0,
            ratios: Vec::new(),
        }
    }

    /// Prints a case that failed because of known differences of its VMM.
    pub fn known(&mut self, report: &Report, differences: BTreeSet<String>) {
        let names: Vec<&str> = differences.iter().map(String::as_str).collect();
        let names = names.join(", ");
        self.line(&format!("differs {:<width$}  {names}", report.case, width = self.width));
        if report.kept.is_some() {
            details(report).iter().for_each(|line| self.line(line));
        }
        self.count_known(report, differences);
    }

    /// Counts such a case without printing it.
    pub fn count_known(&mut self, report: &Report, differences: BTreeSet<String>) {
        self.bar.inc(1);
        self.lost += usize::from(report.lost_its_vm());
        for name in differences {
            *self.known.entry(name).or_default() += 1;
        }
        self.known_cases += 1;
    }

    /// Prints a finished case.
    pub fn case(&mut self, report: Report) {
        self.line(&case_line(&report, self.width));
        for line in details(&report) {
            self.line(&line);
        }
        self.count(report);
    }

    /// Counts a finished case without printing it.
    pub fn count(&mut self, report: Report) {
        self.bar.inc(1);
        self.lost += usize::from(report.lost_its_vm());
        self.ratios.extend(report.refusals.iter().map(Refusal::ratio));
        self.missed |= report.verdict.miss().is_some();
        match &report.verdict {
            Verdict::Pass => self.passed += 1,
            Verdict::Fail(_) => self.failed.push(report),
            Verdict::Ignored(why) => *self.ignored.entry(why.clone()).or_default() += 1,
            Verdict::Broken(_) => self.broken += 1,
        }
        if !self.failed.is_empty() {
            self.bar.set_message(format!("{} failed", self.failed.len()));
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
        text.push_str(&format!(", in {:.1} s", took.as_secs_f64()));
        text.push_str(&format!("\nVMs lost: {}", self.lost));
        text.extend(self.refusals());
        if self.all_ignored() {
            text.push_str(&format!("\nno case ran: all {ignored} were ignored"));
        }
        for report in &self.failed {
            text.push_str(&format!("\nfailed: {}", report.case));
            text.extend(report.repro_commands().into_iter().map(|line| format!("\n  {line}")));
        }
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

    /// True if the host prevented a case from running.
    pub fn any_broken(&self) -> bool {
        self.broken > 0
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

/// Formats a case: verdict, name, updates, blackout, time.
fn case_line(report: &Report, width: usize) -> String {
    let verdict = match &report.verdict {
        Verdict::Pass => "pass",
        Verdict::Fail(_) => "FAIL",
        Verdict::Ignored(_) => "ignored",
        Verdict::Broken(_) => "BROKEN",
    };
    let name = &report.case;
    if let Verdict::Ignored(why) | Verdict::Broken(why) = &report.verdict {
        return format!("{verdict:<7} {name:<width$}  {why}");
    }
    let updates = match report.updates {
        1 => " 1 update ".to_owned(),
        n => format!("{n:>2} updates"),
    };
    let blackout = match report.blackout() {
        Some((median, max)) => {
            let ms = |d: Duration| d.as_secs_f64() * 1e3;
            format!("blackout median {:.2} ms, max {:.2} ms", ms(median), ms(max))
        }
        None => "no blackout seen".to_owned(),
    };
    let took = report.took.as_secs_f64();
    format!("{verdict:<7} {name:<width$}  {updates}  {blackout:<38}  {took:5.2} s")
}

/// Number of updates from which the memory of the VMM is printed.
const MANY: u32 = 100;

/// Returns the details of a failure or of a long case.
pub fn details(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    if let (MANY.., [boot, first, last]) = (report.updates, report.memory_kib.as_slice()) {
        lines.push(format!(
            "        VMM memory without guest RAM: {boot} KiB after boot, {first} after the first update, {last} after the last"
        ));
    }
    if !report.kills.is_empty() {
        lines.push(kills_line(&report.kills));
    }
    if !report.revivals.is_empty() {
        lines.push(revivals_line(report));
    }
    let Verdict::Fail(findings) = &report.verdict else { return lines };
    if let Some(step) = &report.failed_step {
        lines.push(format!("        at {step}:"));
    }
    for finding in findings {
        lines.extend(finding.to_string().lines().map(|line| format!("        {line}")));
    }
    if let Some((pid, socket)) = &report.kept {
        lines.push(format!("        kept: PID {pid}, QMP socket {socket}"));
    }
    lines.extend(report.repro_commands().into_iter().map(|line| format!("        {line}")));
    lines
}

/// Counts the kills by the part of the update in which they happened.
fn kills_line(kills: &[Kill]) -> String {
    let (mut before, mut during, mut after) = (0, 0, 0);
    for kill in kills {
        match kill.last_event.as_deref() {
            None | Some("MIGRATION(setup)") => before += 1,
            Some("RESUME" | "MIGRATION(completed)") => after += 1,
            Some(_) => during += 1,
        }
    }
    let mut line = format!(
        "        kills: {before} before the guest stopped, {during} during the blackout, {after} after it resumed"
    );
    let revived = kills.iter().filter(|kill| kill.revived).count();
    if revived > 0 {
        line.push_str(&format!("; VM survived {revived}"));
    }
    if let Some(gone) = kills.iter().filter(|kill| !kill.revived).map(|kill| kill.gone).max() {
        line.push_str(&format!("; all processes gone within {:.0} ms", gone.as_secs_f64() * 1e3));
    }
    line
}

/// Formats how often the VM was revived in another process, and the blackouts of its guest.
fn revivals_line(report: &Report) -> String {
    let times = report.revivals.len();
    let times = if times == 1 { "once".to_owned() } else { format!("{times} times") };
    let blackout = report.blackout_of_revivals().map_or_else(
        || "no blackout seen".to_owned(),
        |(median, max)| {
            let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
            format!("blackout median {}, max {}", ms(median), ms(max))
        },
    );
    format!("        revived {times}: {blackout}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Finding;
    use crate::run::verdict::Revived;

    fn report(name: &str, verdict: Verdict) -> Report {
        Report {
            case: name.into(),
            verdict,
            failed_step: Some("step 3 (migrate)".into()),
            updates: 10,
            blackouts: vec![Duration::from_micros(1330), Duration::from_micros(2100)],
            phases: Vec::new(),
            host_seen: Vec::new(),
            took: Duration::from_millis(420),
            failed_updates: Vec::new(),
            heard: Vec::new(),
            observed: Vec::new(),
            refusals: vec![Refusal {
                took: Duration::from_millis(20),
                calm: Duration::from_micros(500),
                during: Duration::from_micros(600),
                sleeps: Some(0),
            }],
            kills: vec![
                kill(-1, None),
                kill(4, Some("MIGRATION(device)")),
                kill(9, Some("RESUME")),
            ],
            revivals: vec![revived(1), revived(9)],
            memory_kib: vec![3000, 3100, 3200],
            replay: "cpr-harness replay evidence/update/running".into(),
            show: "cpr-harness show evidence/update/running".into(),
            kept: None,
        }
    }

    fn revived(ms: u64) -> Revived {
        let blackout = Some(Duration::from_millis(ms));
        Revived { former: 1, pid: 2, reason: "SIGKILL".into(), blackout, beat: None }
    }

    fn kill(ms: i64, last: Option<&str>) -> Kill {
        let gone = Duration::from_millis(30);
        Kill { moment_us: ms * 1000, last_event: last.map(str::to_owned), gone, revived: false }
    }

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
            text.push_str(&case_line(&report, 24));
            text.push('\n');
            for line in details(&report) {
                text.push_str(&line);
                text.push('\n');
            }
            terminal.case(report);
        }
        text.push_str(&terminal.summary(Duration::from_secs(3)));
        insta::assert_snapshot!(text);
    }
}
