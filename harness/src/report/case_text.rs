//! Formats the report on a case as lines.

use std::time::Duration;

use crate::observe::patience;
use crate::run::verdict::{ClockStep, Kill};
use crate::run::{Report, Verdict};

/// Formats a case: verdict, name, updates, how long the guest stood still, time. The name is
/// shortened if the line would not fit into `columns`.
pub(super) fn case_line(report: &Report, width: usize, columns: Option<usize>) -> String {
    let verdict = match &report.verdict {
        Verdict::Pass => "pass",
        Verdict::Fail(_) => "FAIL",
        Verdict::Ignored(_) => "ignored",
        Verdict::Broken(_) => "BROKEN",
    };
    let name = &report.case;
    if let Verdict::Ignored(why) | Verdict::Broken(why) = &report.verdict {
        return cut(format!("{verdict:<7} {name:<width$}  {why}"), columns);
    }
    let updates = match report.updates {
        1 => " 1 update ".to_owned(),
        n => format!("{n:>2} updates"),
    };
    let took = report.took.as_secs_f64();
    let rest = format!("  {updates}  {:<33}  {took:5.2} s", stood_still(report));
    let left = columns.map_or(usize::MAX, |all| all.saturating_sub(8 + rest.len()).max(SHORTEST));
    format!("{verdict:<7} {:<width$}{rest}", middle(name, left), width = width.min(left))
}

/// Formats how long the guest stood still: in updates, or else while updates were refused.
fn stood_still(report: &Report) -> String {
    let gaps = report.refusals.iter().map(|refusal| refusal.during);
    match (report.updates, gaps.max()) {
        // In an emulated host and under a wrapper nothing is measured.
        _ if !patience::measures() => String::new(),
        (0, None) => String::new(),
        (0, Some(gap)) => format!("largest gap {:.2} ms", gap.as_secs_f64() * 1e3),
        _ => blackouts(report.blackouts.len(), report.blackout()),
    }
}

/// Formats blackouts: one as it is, several by their median and maximum.
fn blackouts(count: usize, of: Option<(Duration, Duration)>) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    match of {
        None => "no blackout seen".to_owned(),
        Some((_, max)) if count == 1 => format!("blackout {:.2} ms", ms(max)),
        // The larger of two is also their median.
        Some((median, max)) if median == max => format!("blackout max {:.2} ms", ms(max)),
        Some((median, max)) => {
            format!("blackout median {:.2}, max {:.2} ms", ms(median), ms(max))
        }
    }
}

/// The fewest characters of a name that are shown.
const SHORTEST: usize = 16;

/// Leaves out the middle of `name` if it has more than `most` characters.
fn middle(name: &str, most: usize) -> String {
    let count = name.chars().count();
    if count <= most {
        return name.to_owned();
    }
    let head = (most - 1) / 2;
    let tail = name.chars().skip(count - (most - 1 - head));
    name.chars().take(head).chain(['…']).chain(tail).collect()
}

/// Cuts off what does not fit into `columns`.
pub(super) fn cut(line: String, columns: Option<usize>) -> String {
    match columns {
        Some(most) if line.chars().count() > most => {
            line.chars().take(most.saturating_sub(1)).chain(['…']).collect()
        }
        _ => line,
    }
}

/// Number of updates from which the memory of the VMM is printed.
const MANY: u32 = 100;

/// Returns the details of a failure or of a long case, with what to do about a failure.
pub fn details(report: &Report) -> Vec<String> {
    let mut lines = findings(report);
    if matches!(report.verdict, Verdict::Fail(_)) {
        lines.extend(report.repro_commands().into_iter().map(|line| format!("        {line}")));
    }
    lines
}

/// Returns the details of a failure or of a long case.
pub(super) fn findings(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    if let (MANY.., [boot, first, last]) = (report.updates, report.memory_kib.as_slice()) {
        lines.push(format!(
            "        VMM memory without guest RAM: {boot} KiB after boot, {first} after the first update, {last} after the last"
        ));
    }
    if !report.clock_steps.is_empty() {
        lines.push(clock_steps_line(&report.clock_steps));
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
    lines
}

/// Formats the largest step of each clock of the guest.
fn clock_steps_line(steps: &[ClockStep]) -> String {
    let micros = |step: &ClockStep| step.largest.as_secs_f64() * 1e6;
    let each = steps.iter().map(|step| format!("{} {:.1} us", step.clock, micros(step)));
    let each = each.collect::<Vec<_>>().join(", ");
    format!("        largest steps of the guest's clocks: {each}")
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
    let seen = report.revivals.iter().filter(|revived| revived.blackout.is_some()).count();
    let blackout = blackouts(seen, report.blackout_of_revivals());
    format!("        revived {times}: {blackout}")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::check::gaps::Refusal;
    use crate::run::verdict::Revived;

    /// A report with a bit of everything.
    pub(in crate::report) fn report(name: &str, verdict: Verdict) -> Report {
        Report {
            case: name.into(),
            verdict,
            failed_step: Some("step 3 (migrate)".into()),
            updates: 10,
            blackouts: vec![Duration::from_micros(1330), Duration::from_micros(2100)],
            phases: Vec::new(),
            host_seen: Vec::new(),
            clock_steps: Vec::new(),
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
    fn lines_fit_the_terminal() {
        let pass = report("update/running[cpus=2,pages=4k,guest=stopped]", Verdict::Pass);
        for columns in [90, 100, 120, 200] {
            let line = case_line(&pass, 60, Some(columns));
            assert!(line.chars().count() <= columns, "{columns}: {line}");
            assert_eq!(line.contains(&pass.case), !line.contains('…'), "{line}");
        }
        let ignored = report("update/huge", Verdict::Ignored("no huge pages ".repeat(9)));
        let line = case_line(&ignored, 60, Some(80));
        assert!(line.chars().count() == 80 && line.ends_with('…'), "{line}");
    }

    #[test]
    fn only_updates_have_a_blackout() {
        let base = report("a/b", Verdict::Pass);
        let one = Report { updates: 1, blackouts: vec![Duration::from_millis(2)], ..base.clone() };
        let refused = Report { updates: 0, blackouts: Vec::new(), ..base.clone() };
        let none = Report { refusals: Vec::new(), ..refused.clone() };
        let told = [&base, &one, &refused, &none].map(stood_still);
        let gap = "largest gap 0.60 ms";
        assert_eq!(told, ["blackout max 2.10 ms", "blackout 2.00 ms", gap, ""]);
        let three = [2, 1, 3].map(Duration::from_millis).to_vec();
        let many = Report { blackouts: three, ..base };
        assert_eq!(stood_still(&many), "blackout median 2.00, max 3.00 ms");
    }
}
