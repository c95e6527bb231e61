//! Renders the cumulative distribution of guest blackouts, over all cases and by theme.

use std::fmt::Write;
use std::time::Duration;

use maud::{Markup, html};

use super::super::record::Entry;
use super::parts::{anchor, ms};

/// The marked shares, in percent, and their names.
const MARKS: [(usize, &str); 4] = [(50, "p50"), (90, "p90"), (99, "p99"), (100, "max")];
/// Most steps of the curve.
const STEPS: usize = 500;
/// The size of the curve's coordinate system.
const SIZE: (f64, f64) = (1000.0, 100.0);

/// Blackouts with the cases that they are of, the shortest first. Not empty.
struct Blackouts<'a>(Vec<(Duration, &'a Entry)>);

impl<'a> Blackouts<'a> {
    fn of(cases: impl Iterator<Item = &'a Entry>) -> Option<Self> {
        let of = |entry: &'a Entry| entry.report.blackouts.iter().map(move |time| (*time, entry));
        let mut all: Vec<_> = cases.flat_map(of).collect();
        all.sort_by_key(|(time, _)| *time);
        (!all.is_empty()).then_some(Self(all))
    }

    /// Returns the smallest blackout that at least this share, in percent, does not exceed.
    fn at(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).map_or(Duration::ZERO, |(time, _)| *time)
    }

    /// Returns the longest blackout and its case.
    fn worst(&self) -> Option<(Duration, &'a Entry)> {
        self.0.last().copied()
    }
}

/// A logarithmic axis of time.
struct Axis {
    begin: f64,
    end: f64,
}

impl Axis {
    fn over(all: &Blackouts) -> Self {
        let log = |time: Duration| time.as_secs_f64().max(1e-6).log10();
        let (begin, end) = (log(all.at(0)), log(all.at(100)));
        Self { begin: begin - 0.05, end: end.max(begin + 0.1) + 0.05 }
    }

    /// Returns where a time is, from 0 to 1.
    fn place(&self, time: Duration) -> f64 {
        let at = time.as_secs_f64().max(1e-6).log10();
        ((at - self.begin) / (self.end - self.begin)).clamp(0.0, 1.0)
    }

    /// Returns the ticks: 1, 2 and 5 in each decade, or only 1 if there are many decades.
    fn ticks(&self) -> Vec<Duration> {
        let wide = self.end - self.begin > 2.5;
        let steps: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let decades = self.begin.floor() as i32..=self.end.ceil() as i32;
        let times = decades.flat_map(|decade| {
            steps.iter().map(move |step| Duration::from_secs_f64(step * 10f64.powi(decade)))
        });
        times.filter(|time| (0.02..=0.98).contains(&self.place(*time))).collect()
    }
}

/// Renders the distribution, if any blackout was measured.
pub fn distribution(themes: &[&str], cases: &[Entry]) -> Markup {
    let Some(all) = Blackouts::of(cases.iter()) else { return html! {} };
    let axis = Axis::over(&all);
    let of_theme = |theme: &&str| {
        let blackouts = Blackouts::of(cases.iter().filter(|entry| entry.theme == *theme))?;
        Some((theme.to_string(), blackouts))
    };
    let mut by_theme: Vec<_> = themes.iter().filter_map(of_theme).collect();
    by_theme.sort_by(|(a, _), (b, _)| a.cmp(b));
    html! {
        section aria-labelledby="blackouts" {
            h2 id="blackouts" { "Blackouts" }
            p {
                (all.0.len()) " updates of running guests: "
                @for (percent, name) in MARKS { @if percent < 100 { (name) " " (ms(all.at(percent))) ", " } }
                @if let Some((time, entry)) = all.worst() {
                    "max " (ms(time)) " in "
                    a href=(format!("#{}", anchor(&entry.report.case))) { (entry.report.case) } "."
                }
            }
            (curve(&all, &axis))
            p.quiet { "Share of updates whose blackout is at most this long: the largest gap between two heartbeats around an update, on the guest's clock." }
            div.scroll role="region" aria-label="blackouts by theme" tabindex="0" {
                table.shares {
                    caption.quiet { "By theme, in ms. The bar is from the median to the 99th percentile, the tick is the longest, which links to its case." }
                    thead { tr {
                        th scope="col" { "theme" }
                        th.number scope="col" { "updates" }
                        @for (_, name) in MARKS { th.number scope="col" { (name) } }
                        th.range scope="col" { span.unseen { "range" } }
                    } }
                    tbody {
                        (row("all", &all, &axis))
                        @for (theme, blackouts) in &by_theme { (row(theme, blackouts, &axis)) }
                    }
                }
            }
        }
    }
}

fn row(name: &str, blackouts: &Blackouts, axis: &Axis) -> Markup {
    let number = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
    let place = |percent: usize| percent_of(axis.place(blackouts.at(percent)));
    let width = axis.place(blackouts.at(99)) - axis.place(blackouts.at(50));
    html! {
        tr {
            th scope="row" { (name) }
            td.number { (blackouts.0.len()) }
            @for (percent, _) in MARKS {
                td.number {
                    @match blackouts.worst() {
                        Some((time, entry)) if percent == 100 => {
                            a href=(format!("#{}", anchor(&entry.report.case)))
                                title=(entry.report.case) { (number(time)) }
                        }
                        _ => (number(blackouts.at(percent))),
                    }
                }
            }
            td.range {
                svg aria-hidden="true" {
                    rect.blackout x=(place(50)) y="3" height="6" width=(percent_of(width.max(0.004))) {}
                    line.tick x1=(place(100)) x2=(place(100)) y1="0" y2="12" {}
                }
            }
        }
    }
}

fn curve(all: &Blackouts, axis: &Axis) -> Markup {
    let label = MARKS.map(|(percent, name)| format!("{name} {}", ms(all.at(percent)))).join(", ");
    let ticks = axis.ticks();
    html! {
        svg.curve role="img" aria-label=(format!("cumulative distribution of blackouts: {label}")) {
            svg y="8" width="100%" height="176" viewBox="0 0 1000 100" preserveAspectRatio="none" {
                @for y in [0, 25, 50, 75, 100] { line.grid x1="0" x2="1000" y1=(y) y2=(y) {} }
                @for time in &ticks {
                    @let x = format!("{:.1}", axis.place(*time) * SIZE.0);
                    line.grid x1=(x) x2=(x) y1="0" y2="100" {}
                }
                @for (percent, _) in MARKS {
                    @let x = format!("{:.1}", axis.place(all.at(percent)) * SIZE.0);
                    line.mark x1=(x) x2=(x) y1="0" y2="100" {}
                }
                path.line d=(path(all, axis)) {}
            }
            @for (share, y) in [("100 %", 20), ("75 %", 64), ("50 %", 108), ("25 %", 152)] {
                text.axis-text x="2" y=(y) { (share) }
            }
            @for time in &ticks {
                text.axis-text.middle x=(percent_of(axis.place(*time))) y="200" { (short(*time)) }
            }
            @for (index, (percent, name)) in MARKS.into_iter().enumerate() {
                @let x = axis.place(all.at(percent));
                // Each at its own height, and left of its line at the right edge.
                @let class = if x > 0.6 { "mark-text end" } else { "mark-text" };
                @let y = 176 - 16 * index;
                text class=(class) x=(percent_of(x)) y=(y) { "\u{a0}" (name) " " (ms(all.at(percent))) "\u{a0}" }
            }
        }
    }
}

/// Returns the steps of the curve, at most [`STEPS`].
fn path(all: &Blackouts, axis: &Axis) -> String {
    let count = all.0.len();
    let every = count.div_ceil(STEPS).max(1);
    let mut path = format!("M0 {:.2}", SIZE.1);
    for (index, (time, _)) in all.0.iter().enumerate() {
        if index % every == 0 || index + 1 == count {
            let share = (index + 1) as f64 / count as f64;
            let (x, y) = (axis.place(*time) * SIZE.0, (1.0 - share) * SIZE.1);
            // Writing to a String cannot fail.
            let _ = write!(path, "H{x:.1}V{y:.2}");
        }
    }
    let _ = write!(path, "H{}", SIZE.0);
    path
}

fn percent_of(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}

/// Formats a tick.
fn short(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms >= 1e3 {
        format!("{:.0} s", ms / 1e3)
    } else {
        format!("{} ms", (ms * 1e3).round() / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Report;

    fn entry(case: &str, us: impl Iterator<Item = u64>) -> Entry {
        let blackouts = us.map(Duration::from_micros).collect();
        Entry {
            summary: String::new(),
            theme: "a".into(),
            evidence: None,
            run: 0,
            known: Default::default(),
            report: Report { blackouts, ..Report::of(case, String::new(), String::new()) },
        }
    }

    #[test]
    fn percentiles_are_blackouts_that_were_seen() {
        let cases = [entry("a/odd", (1..200).step_by(2)), entry("a/even", (2..=200).step_by(2))];
        let all = Blackouts::of(cases.iter()).unwrap();
        let us = |percent| all.at(percent).as_micros();
        assert_eq!([us(0), us(50), us(90), us(99), us(100)], [1, 100, 180, 198, 200]);
        let (time, worst) = all.worst().unwrap();
        assert_eq!((time, &*worst.report.case), (Duration::from_micros(200), "a/even"));
        let one = [entry("a/one", [7].into_iter())];
        let one = Blackouts::of(one.iter()).unwrap();
        assert_eq!([one.at(50), one.at(100)], [Duration::from_micros(7); 2]);
        assert!(Blackouts::of([].iter()).is_none());
    }

    #[test]
    fn curve_rises_from_left_to_right() {
        let cases = [entry("a/b", (0..3_000).map(|us| 1 + us * 37 % 9_000))];
        let all = Blackouts::of(cases.iter()).unwrap();
        let axis = Axis::over(&all);
        let path = path(&all, &axis);
        let points: Vec<(f64, f64)> = path
            .split('H')
            .filter_map(|step| step.split_once('V'))
            .map(|(x, y)| (x.parse().unwrap(), y.parse().unwrap()))
            .collect();
        assert!((100..=STEPS + 1).contains(&points.len()), "{}", points.len());
        assert!(points.windows(2).all(|two| two[0].0 <= two[1].0 && two[0].1 >= two[1].1));
        assert_eq!(points.last().unwrap().1, 0.0);
        assert!(axis.ticks().len() >= 2, "{:?}", axis.ticks());
    }
}
