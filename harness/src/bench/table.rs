//! What was measured, as people read it: Markdown tables, one row a machine.

use super::statistics::{ratio, spread};
use super::{Cell, Measured, Metric, Samples};
use crate::observe::phases::Phase;

/// All tables, with what the columns mean.
pub fn markdown(measured: &[Measured]) -> Vec<String> {
    let mut lines = blackouts(measured);
    lines.push(String::new());
    lines.extend(phases(measured));
    lines.push(String::new());
    lines.extend(touching(measured));
    lines
}

/// A table's head: the machine, and these columns.
pub(super) fn head(columns: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut cells = ["RAM", "vCPUs", "pages"].map(str::to_owned).to_vec();
    cells.extend(columns);
    vec![format!("| {} |", cells.join(" | ")), format!("|{}", "---|".repeat(cells.len()))]
}

/// A row of it.
pub(super) fn line(cell: Cell, columns: impl IntoIterator<Item = String>) -> String {
    let mut cells =
        vec![cell.memory.to_string(), cell.cpus.to_string(), cell.pages.as_str().to_owned()];
    cells.extend(columns);
    format!("| {} |", cells.join(" | "))
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { memory, cpus, pages } = self;
        let s = if *cpus == 1 { "" } else { "s" };
        write!(f, "{memory} RAM, {cpus} vCPU{s}, {}", pages.as_str())
    }
}

/// How long the guest stands still; ratios are those to the first VMM, and of it to the floor.
fn blackouts(measured: &[Measured]) -> Vec<String> {
    let Some(first) = measured.first() else { return Vec::new() };
    let names = || first.of.iter().map(|samples| samples.vmm.as_str());
    let one = names().next().unwrap_or_default();
    let mut columns = Vec::new();
    for name in names() {
        columns.extend([format!("{name}: guest, ms"), format!("{name}: host, ms")]);
    }
    columns.extend(names().skip(1).map(|name| format!("{name} : {one}")));
    if first.floor.is_some() {
        columns.extend(["floor, ms".to_owned(), format!("{one} : floor")]);
    }
    let mut lines = vec!["How long the guest stands still: median (least to most)\n".to_owned()];
    lines.extend(head(columns));
    lines.extend(measured.iter().map(|Measured { cell, of, floor }| {
        let mut cells = Vec::new();
        for samples in of {
            cells.extend([times(samples, Metric::Guest), times(samples, Metric::Host)]);
        }
        if let Some((first, others)) = of.split_first() {
            let guest = |samples: &Samples| samples.times(Metric::Guest).to_vec();
            cells.extend(others.iter().map(|other| ratio_cell(&guest(first), &guest(other))));
            if let Some(floor) = floor {
                let ratio = ratio_cell(floor.times(Metric::Floor), &guest(first));
                cells.extend([times(floor, Metric::Floor), ratio]);
            }
        }
        line(*cell, cells)
    }));
    lines
}

/// Where the time goes: a row for each VMM that tells.
fn phases(measured: &[Measured]) -> Vec<String> {
    let mut lines = vec!["Where it goes: median of each phase, ms\n".to_owned()];
    let columns = Phase::ALL.map(|phase| phase.name().to_owned());
    lines.extend(head(std::iter::once("VMM".to_owned()).chain(columns)));
    for Measured { cell, of, floor, .. } in measured {
        let told = |samples: &&Samples| !samples.phases_ms.is_empty() || samples.cannot.is_none();
        for samples in of.iter().chain(floor).filter(told) {
            let median = |phase| {
                let times = samples.phases_ms.get(&phase).map(|times| times.concat());
                spread(&times.unwrap_or_default())
                    .map_or_else(|| "-".to_owned(), |of| format!("{:.3}", of.median))
            };
            let columns = Phase::ALL.map(median);
            lines.push(line(*cell, std::iter::once(samples.vmm.clone()).chain(columns)));
        }
    }
    lines
}

/// How long the guest takes to touch every page, which it must be given back first.
fn touching(measured: &[Measured]) -> Vec<String> {
    let mut lines =
        vec!["How long the guest takes to touch all its RAM: median (least to most)\n".to_owned()];
    lines.extend(head(["VMM", "before, ms", "after, ms", "after : before"].map(str::to_owned)));
    for Measured { cell, of, .. } in measured {
        for samples in of {
            let both = [Metric::TouchBefore, Metric::TouchAfter];
            let [before, after] = both.map(|metric| times(samples, metric));
            let ratio = ratio_cell(samples.times(both[0]), samples.times(both[1]));
            lines.push(line(*cell, [samples.vmm.clone(), before, after, ratio]));
        }
    }
    lines
}

/// What cannot be measured on this host.
pub fn left_out(measured: &Measured) -> impl Iterator<Item = String> {
    let Measured { cell, of, .. } = measured;
    of.iter().filter_map(move |samples| {
        let why = samples.cannot.as_ref()?;
        Some(format!("left out: {}, {cell}: {why}", samples.vmm))
    })
}

/// What kept a VMM from being measured.
pub fn troubles(measured: &Measured) -> impl Iterator<Item = String> {
    let Measured { cell, of, floor } = measured;
    let told = move |samples: &Samples| -> Vec<String> {
        let tell = |why: &String| format!("{}, {cell}: {why}", samples.vmm);
        samples.troubles.iter().map(tell).collect()
    };
    of.iter().chain(floor).flat_map(told)
}

fn times(of: &Samples, metric: Metric) -> String {
    let all = of.times(metric).concat();
    match spread(&all) {
        None if of.cannot.is_some() => "not here".into(),
        None => "not measured".into(),
        Some(of) => format!("{:.2} ({:.2} to {:.2}), n={}", of.median, of.min, of.max, all.len()),
    }
}

fn ratio_cell(first: &[Vec<f64>], other: &[Vec<f64>]) -> String {
    match ratio(first, other) {
        None => "-".into(),
        Some(r) => format!("{:.1} ({:.1} to {:.1}), p={:.4}", r.ratio, r.low, r.high, r.p),
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::Results;
    use super::*;

    #[test]
    fn tables_as_they_are_printed() {
        let results: Results = serde_json::from_str(include_str!("tests/results.json")).unwrap();
        let mut lines = markdown(&results.measured);
        lines.extend(results.measured.iter().flat_map(troubles));
        lines.extend(results.measured.iter().flat_map(left_out));
        insta::assert_snapshot!(lines.join("\n"));
    }
}
