//! Renders the measurements as Markdown tables, one row per machine.

use super::statistics::{ratio, spread};
use super::{Cell, Measured, Metric, Samples};
use crate::observe::phases::Phase;

/// Returns all tables with their headings.
pub fn markdown(measured: &[Measured]) -> Vec<String> {
    let mut lines = blackouts(measured);
    lines.push(String::new());
    lines.extend(phases(measured));
    lines.push(String::new());
    lines.extend(touching(measured));
    lines
}

/// Returns the head of a table: the machine, and these columns.
pub(super) fn head(columns: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut cells = ["RAM", "vCPUs", "pages"].map(str::to_owned).to_vec();
    cells.extend(columns);
    vec![format!("| {} |", cells.join(" | ")), format!("|{}", "---|".repeat(cells.len()))]
}

/// Returns a row of a table.
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

/// Returns the table of blackouts, with the ratio of each VMM to the first, and of the first to the
/// floor.
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
    let mut lines = vec!["Blackout: median (min to max)\n".to_owned()];
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

/// Returns the table of phases, a row for each VMM and the floor.
fn phases(measured: &[Measured]) -> Vec<String> {
    let mut lines = vec!["Phases of the update: median, ms\n".to_owned()];
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

/// Returns the table of the time to touch all RAM, which includes mapping the pages again.
fn touching(measured: &[Measured]) -> Vec<String> {
    let mut lines =
        vec!["Time for the guest to touch all its RAM: median (min to max)\n".to_owned()];
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

/// Returns a line for each VMM that cannot run the machine on this host.
pub fn left_out(measured: &Measured) -> impl Iterator<Item = String> {
    let Measured { cell, of, .. } = measured;
    of.iter().filter_map(move |samples| {
        let why = samples.cannot.as_ref()?;
        Some(format!("skipped: {}, {cell}: {why}", samples.vmm))
    })
}

/// Returns a line for each failure to measure a VMM.
pub fn problems(measured: &Measured) -> impl Iterator<Item = String> {
    let Measured { cell, of, floor } = measured;
    let told = move |samples: &Samples| -> Vec<String> {
        let tell = |why: &String| format!("{}, {cell}: {why}", samples.vmm);
        samples.problems.iter().map(tell).collect()
    };
    of.iter().chain(floor).flat_map(told)
}

fn times(of: &Samples, metric: Metric) -> String {
    let all = of.times(metric).concat();
    match spread(&all) {
        None if of.cannot.is_some() => "skipped".into(),
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
        lines.extend(results.measured.iter().flat_map(problems));
        lines.extend(results.measured.iter().flat_map(left_out));
        insta::assert_snapshot!(lines.join("\n"));
    }
}
