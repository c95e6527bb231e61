//! Two files of results compared.

use super::file::Results;
use super::statistics::{Ratio, ratio};
use super::table::{head, line};
use super::{Cell, Measured, Metric, Samples};

/// What chance may explain as often as this is no difference.
const CHANCE: f64 = 0.01;
/// Fewer boots on each side cannot show a difference, whatever they measure: of five and five one
/// grouping in 126 is as far apart.
const BOOTS: usize = 5;

/// What is compared, in its order.
const METRICS: [Metric; 3] = [Metric::Guest, Metric::Host, Metric::TouchAfter];

/// What a comparison shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It takes longer than it did, by more than is let pass.
    Slower,
    /// It takes less time, by as much.
    Faster,
    /// Neither can be said.
    None,
}

/// One metric of one VMM on one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    cell: Cell,
    vmm: String,
    metric: Metric,
    ratio: Ratio,
    boots: usize,
    change: Change,
}

/// All of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// What both have.
    pub rows: Vec<Row>,
    /// What only one of them has.
    pub unmatched: Vec<String>,
    threshold: f64,
}

/// Compares `new` with `old`; ratios between 1 / `threshold` and `threshold` are let pass.
pub fn compare(old: &Results, new: &Results, threshold: f64) -> Comparison {
    let mut rows = Vec::new();
    let mut unmatched = only_in("OLD", old, new);
    unmatched.extend(only_in("NEW", new, old));
    for (cell, before, after) in all(old).filter_map(|(cell, before)| {
        let after = find(new, cell, &before.vmm)?;
        Some((cell, before, after))
    }) {
        for metric in METRICS {
            let (old, new) = (before.times(metric), after.times(metric));
            let Some(ratio) = ratio(old, new) else { continue };
            let change = change(&ratio, threshold);
            let (vmm, boots) = (before.vmm.clone(), old.len().min(new.len()));
            rows.push(Row { cell, vmm, metric, ratio, boots, change });
        }
    }
    Comparison { rows, unmatched, threshold }
}

fn change(ratio: &Ratio, threshold: f64) -> Change {
    match ratio {
        Ratio { p, .. } if *p >= CHANCE => Change::None,
        Ratio { ratio, .. } if *ratio > threshold => Change::Slower,
        Ratio { ratio, .. } if *ratio < 1.0 / threshold => Change::Faster,
        _ => Change::None,
    }
}

fn all(results: &Results) -> impl Iterator<Item = (Cell, &Samples)> {
    let of = |measured: &'_ Measured| measured.cell;
    results.measured.iter().flat_map(move |m| m.of.iter().map(move |samples| (of(m), samples)))
}

fn find<'a>(results: &'a Results, cell: Cell, vmm: &str) -> Option<&'a Samples> {
    all(results).find(|(other, samples)| *other == cell && samples.vmm == vmm).map(|(_, s)| s)
}

fn only_in(name: &str, here: &Results, there: &Results) -> Vec<String> {
    all(here)
        .filter(|(cell, samples)| find(there, *cell, &samples.vmm).is_none())
        .map(|(cell, samples)| format!("only in {name}: {}, {cell}", samples.vmm))
        .collect()
}

impl Comparison {
    /// True if anything takes longer than it did.
    pub fn any_slower(&self) -> bool {
        self.rows.iter().any(|row| row.change == Change::Slower)
    }

    /// As a Markdown table, with what there is to say about it.
    pub fn lines(&self) -> Vec<String> {
        let columns = ["VMM", "what", "new : old (95 %)", "p", "verdict"];
        let mut lines = head(columns.map(str::to_owned));
        lines.extend(self.rows.iter().map(Row::line));
        lines.push(String::new());
        lines.extend(self.unmatched.iter().cloned());
        let of = |change| self.rows.iter().filter(|row| row.change == change).count();
        let (slower, faster) = (of(Change::Slower), of(Change::Faster));
        let (rows, threshold) = (self.rows.len(), self.threshold);
        lines.push(format!(
            "{rows} compared: {slower} slower, {faster} faster, by more than {threshold} times with p < {CHANCE}"
        ));
        if let Some(least) = self.rows.iter().map(|row| row.boots).min().filter(|n| *n < BOOTS) {
            lines.push(format!(
                "{least} boots a side are too few to show anything: measure with --runs {BOOTS} or more"
            ));
        }
        lines
    }
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
    fn a_clear_difference_is_told_and_fails() {
        let (old, new) = (results(1, "a", 6, 1.0), results(1, "a", 6, 1.3));
        let slower = compare(&old, &new, 1.1);
        assert!(slower.any_slower());
        let faster = compare(&new, &old, 1.1);
        assert!(!faster.any_slower());
        insta::assert_snapshot!([slower.lines(), faster.lines()].concat().join("\n"));
    }

    #[test]
    fn what_is_let_pass_and_what_chance_explains_is_no_difference() {
        let (old, new) = (results(1, "a", 6, 1.0), results(1, "a", 6, 1.3));
        assert!(!compare(&old, &new, 1.4).any_slower());
        let (old, new) = (results(1, "a", 3, 1.0), results(1, "a", 3, 9.0));
        let few = compare(&old, &new, 1.1);
        assert!(!few.any_slower());
        assert!(few.lines().last().is_some_and(|line| line.starts_with("3 boots a side")));
    }

    #[test]
    fn what_only_one_has_is_told() {
        let (old, new) = (results(1, "a", 5, 1.0), results(2, "b", 5, 1.0));
        let comparison = compare(&old, &new, 1.1);
        assert_eq!(comparison.rows, []);
        assert_eq!(
            comparison.unmatched,
            ["only in OLD: a, 64M RAM, 1 vCPU, 4k", "only in NEW: b, 64M RAM, 2 vCPUs, 4k"]
        );
    }
}
