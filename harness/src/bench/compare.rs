//! Compares two files of results.

use super::file::Results;
use super::statistics::{Ratio, ratio};
use super::table::{head, line};
use super::{Cell, Measured, Metric, Samples};

/// Significance level: a p at or above this is not a difference.
const CHANCE: f64 = 0.01;
/// Number of boots on each side that can show a difference: with five and five, at best one
/// regrouping in 126 is as far apart.
const BOOTS: usize = 5;

/// The metrics to compare, in order of output.
const METRICS: [Metric; 3] = [Metric::Guest, Metric::Host, Metric::TouchAfter];

/// Outcome of comparing one metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Slower by more than the threshold.
    Slower,
    /// Faster by more than the threshold.
    Faster,
    /// No difference shown.
    None,
}

/// The comparison of one metric of one VMM on one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    cell: Cell,
    vmm: String,
    metric: Metric,
    ratio: Ratio,
    boots: (usize, usize),
    change: Change,
}

/// The comparison of two files.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Metrics that both files have.
    pub rows: Vec<Row>,
    /// Measurements that only one file has, one line each.
    pub unmatched: Vec<String>,
    /// Measurements that OLD has and NEW lacks although its host supports them, one line each.
    pub lost: Vec<String>,
    /// Differences between the hosts, one line each.
    hosts: Vec<String>,
    threshold: f64,
}

/// Compares `new` with `old`; ratios between 1 / `threshold` and `threshold` are tolerated.
pub fn compare(old: &Results, new: &Results, threshold: f64) -> Comparison {
    let (mut rows, mut lost) = (Vec::new(), Vec::new());
    let mut unmatched = only_in("OLD", old, new);
    unmatched.extend(only_in("NEW", new, old));
    for (cell, before, after) in all(old).filter_map(|(cell, nth, before)| {
        let after = find(new, cell, nth, &before.vmm)?;
        Some((cell, before, after))
    }) {
        for metric in METRICS {
            let (old, new) = (before.times(metric), after.times(metric));
            if metric == Metric::Guest
                && !old.is_empty()
                && new.is_empty()
                && after.cannot.is_none()
            {
                let why = after.problems.join("; ");
                lost.push(format!("no times in NEW: {}, {cell}: {why}", after.vmm));
            }
            let Some(ratio) = ratio(old, new) else { continue };
            let change = change(&ratio, threshold);
            let (vmm, boots) = (before.vmm.clone(), (old.len(), new.len()));
            rows.push(Row { cell, vmm, metric, ratio, boots, change });
        }
    }
    Comparison { rows, unmatched, lost, hosts: hosts(old, new), threshold }
}

fn hosts(old: &Results, new: &Results) -> Vec<String> {
    let all = [
        ("harness", old.harness.clone(), new.harness.clone()),
        ("kernel", old.kernel.clone(), new.kernel.clone()),
        ("CPUs", old.cpus.to_string(), new.cpus.to_string()),
    ];
    let differs = all.into_iter().filter(|(_, was, is)| was != is);
    differs.map(|(what, was, is)| format!("{what}: was {was}, is {is}")).collect()
}

fn change(ratio: &Ratio, threshold: f64) -> Change {
    match ratio {
        Ratio { p, .. } if *p >= CHANCE => Change::None,
        Ratio { ratio, .. } if *ratio > threshold => Change::Slower,
        Ratio { ratio, .. } if *ratio < 1.0 / threshold => Change::Faster,
        _ => Change::None,
    }
}

/// Returns all samples, each with the number of earlier ones of the same name in the same cell.
fn all(results: &Results) -> impl Iterator<Item = (Cell, usize, &Samples)> {
    results.measured.iter().flat_map(|Measured { cell, of, .. }| {
        of.iter().enumerate().map(|(index, samples)| {
            let nth = of[..index].iter().filter(|other| other.vmm == samples.vmm).count();
            (*cell, nth, samples)
        })
    })
}

fn find<'a>(results: &'a Results, cell: Cell, nth: usize, vmm: &str) -> Option<&'a Samples> {
    let same =
        |found: &(Cell, usize, &Samples)| found.0 == cell && found.1 == nth && found.2.vmm == vmm;
    all(results).find(same).map(|(_, _, samples)| samples)
}

fn only_in(name: &str, here: &Results, there: &Results) -> Vec<String> {
    all(here)
        .filter(|(cell, nth, samples)| find(there, *cell, *nth, &samples.vmm).is_none())
        .map(|(cell, _, samples)| format!("only in {name}: {}, {cell}", samples.vmm))
        .collect()
}

impl Comparison {
    /// True if anything is slower.
    pub fn any_slower(&self) -> bool {
        self.rows.iter().any(|row| row.change == Change::Slower)
    }

    /// Returns a Markdown table, followed by notes.
    pub fn lines(&self) -> Vec<String> {
        let columns = ["VMM", "what", "new : old (95 %)", "p", "verdict"];
        let mut lines = head(columns.map(str::to_owned));
        lines.extend(self.rows.iter().map(Row::line));
        lines.push(String::new());
        lines.extend(self.hosts.iter().chain(&self.unmatched).chain(&self.lost).cloned());
        let of = |change| self.rows.iter().filter(|row| row.change == change).count();
        let (slower, faster) = (of(Change::Slower), of(Change::Faster));
        let (rows, threshold) = (self.rows.len(), self.threshold);
        lines.push(format!(
            "{rows} compared: {slower} slower, {faster} faster, by a factor of more than {threshold} with p < {CHANCE}; each row is tested alone, so of many rows a few differ by chance"
        ));
        let few = self.rows.iter().map(|row| row.boots).find(|boots| least(*boots) >= CHANCE);
        if let Some((old, new)) = few {
            lines.push(format!(
                "{old} and {new} boots are too few to show a difference: use --runs {BOOTS} or more"
            ));
        }
        lines
    }
}

/// Smallest p that these numbers of boots can reach: one of all groupings, 1 / C(n + m, n).
fn least((old, new): (usize, usize)) -> f64 {
    (1..=new).map(|i| i as f64 / (old + i) as f64).product()
}

impl Row {
    fn line(&self) -> String {
        let Ratio { ratio, low, high, p } = self.ratio;
        let verdict = match self.change {
            Change::Slower => "slower",
            Change::Faster => "faster",
            Change::None => "no difference shown",
        };
        line(
            self.cell,
            [
                self.vmm.clone(),
                self.metric.name().to_owned(),
                format!("{ratio:.2} ({low:.2} to {high:.2})"),
                format!("{p:.4}"),
                verdict.to_owned(),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Pages;
    use crate::scenario::size::Size;
    use std::collections::BTreeMap;

    fn results(cpus: u32, vmm: &str, boots: usize, factor: f64) -> Results {
        let times: Vec<Vec<f64>> =
            (0..boots).map(|i| vec![factor * (1.0 + i as f64 / 100.0); 2]).collect();
        let times_ms: BTreeMap<_, _> = METRICS.map(|metric| (metric, times.clone())).into();
        let of = vec![Samples { vmm: vmm.into(), times_ms, ..Samples::default() }];
        let cell = Cell { memory: Size(64 << 20), cpus, pages: Pages::Small };
        let measured = vec![Measured { cell, of, floor: None }];
        Results { kernel: String::new(), ..Results::here(measured) }
    }

    #[test]
    fn a_clear_difference_is_reported() {
        let (old, new) = (results(1, "a", 6, 1.0), results(1, "a", 6, 1.3));
        let slower = compare(&old, &new, 1.1);
        assert!(slower.any_slower());
        let faster = compare(&new, &old, 1.1);
        assert!(!faster.any_slower());
        insta::assert_snapshot!([slower.lines(), faster.lines()].concat().join("\n"));
    }

    #[test]
    fn tolerated_and_chance_differences_do_not_count() {
        let (old, new) = (results(1, "a", 6, 1.0), results(1, "a", 6, 1.3));
        assert!(!compare(&old, &new, 1.4).any_slower());
        let (old, new) = (results(1, "a", 3, 1.0), results(1, "a", 3, 9.0));
        let few = compare(&old, &new, 1.1);
        assert!(!few.any_slower());
        assert!(few.lines().last().is_some_and(|line| line.starts_with("3 and 3 boots")));
    }

    #[test]
    fn many_boots_of_one_side_make_up_for_few_of_the_other() {
        assert!((least((5, 5)) - 1.0 / 252.0).abs() < 1e-12);
        assert!(least((4, 4)) > CHANCE && least((3, 20)) < CHANCE);
    }

    #[test]
    fn unmatched_measurements_are_listed() {
        let (old, new) = (results(1, "a", 5, 1.0), results(2, "b", 5, 1.0));
        let comparison = compare(&old, &new, 1.1);
        assert_eq!((comparison.rows, comparison.lost), (vec![], vec![]));
        assert_eq!(
            comparison.unmatched,
            ["only in OLD: a, 64M RAM, 1 vCPU, 4k", "only in NEW: b, 64M RAM, 2 vCPUs, 4k"]
        );
    }

    #[test]
    fn lost_times_and_host_changes_are_listed() {
        let (old, mut new) = (results(1, "a", 6, 1.0), results(1, "a", 0, 1.0));
        new.kernel = "7.0".into();
        new.measured[0].of[0].problems = vec!["damage: a page".into()];
        let comparison = compare(&old, &new, 1.1);
        assert_eq!(comparison.lost, ["no times in NEW: a, 64M RAM, 1 vCPU, 4k: damage: a page"]);
        assert!(comparison.lines().contains(&"kernel: was , is 7.0".to_owned()));
        new.measured[0].of[0].cannot = Some("no huge pages".into());
        assert_eq!(compare(&old, &new, 1.1).lost, [""; 0]);
    }
}
