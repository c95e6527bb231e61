//! Renders the histogram of guest blackouts over all cases.

use std::time::Duration;

use maud::{Markup, html};

use super::super::record::Entry;
use super::parts::{bar, ms};

/// Upper limits of the classes in microseconds, three per decade.
const ENDS: [u64; 16] = [
    100,
    200,
    500,
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    u64::MAX,
];

/// Renders the histogram, if any blackout was measured.
pub fn histogram(cases: &[Entry]) -> Markup {
    let mut all: Vec<Duration> =
        cases.iter().flat_map(|entry| entry.report.blackouts.iter().copied()).collect();
    all.sort();
    let Some(max) = all.last() else { return html! {} };
    let at = |part: usize| all.get(all.len() * part / 100).unwrap_or(max);
    let classes = classes(&all);
    let most = classes.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
    html! {
        section aria-labelledby="blackouts" {
            h2 id="blackouts" { "Blackouts" }
            p { (all.len()) " updates of running guests: median " (ms(*at(50))) ", 99th percentile "
                (ms(*at(99))) ", longest " (ms(*max)) "." }
            table.bars {
                caption.quiet { "Largest gap between two heartbeats around an update, on the guest's clock" }
                thead { tr { th scope="col" { "up to" } th scope="col" { span.unseen { "share" } } th.number scope="col" { "updates" } } }
                tbody {
                    @for (end, count) in classes {
                        tr {
                            th scope="row" { (end) }
                            td.wide { @if count > 0 { (bar("blackout", 0.0, count as f64 / most as f64)) } }
                            td.number { (count) }
                        }
                    }
                }
            }
        }
    }
}

/// Returns the count of each class, from the first to the last non-empty one. `sorted` must not be
/// empty.
fn classes(sorted: &[Duration]) -> Vec<(String, usize)> {
    let class = |time: &Duration| ENDS.iter().position(|end| time.as_micros() <= u128::from(*end));
    let mut counts = [0; ENDS.len()];
    for time in sorted {
        if let Some(count) = class(time).and_then(|class| counts.get_mut(class)) {
            *count += 1;
        }
    }
    let first = counts.iter().position(|count| *count > 0).unwrap_or(0);
    let last = counts.iter().rposition(|count| *count > 0).unwrap_or(0);
    let name = |end: u64| match end {
        u64::MAX => "more".to_owned(),
        us if us < 1_000 => format!("{} ms", us as f64 / 1e3),
        us if us < 1_000_000 => format!("{} ms", us / 1_000),
        us => format!("{} s", us / 1_000_000),
    };
    ENDS.iter().zip(counts).take(last + 1).skip(first).map(|(end, n)| (name(*end), n)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_blackout_is_in_one_class() {
        let times = [90, 100, 101, 1_500, 1_900_000, 9_000_000].map(Duration::from_micros);
        let classes = classes(&times);
        assert_eq!(classes.iter().map(|(_, count)| count).sum::<usize>(), times.len());
        let of = |name: &str| classes.iter().find(|(end, _)| end == name).map(|(_, n)| *n);
        assert_eq!(of("0.1 ms"), Some(2));
        assert_eq!(of("0.2 ms"), Some(1));
        assert_eq!(of("2 ms"), Some(1));
        assert_eq!(of("50 ms"), Some(0));
        assert_eq!(of("2 s"), Some(1));
        assert_eq!(of("more"), Some(1));
    }
}
