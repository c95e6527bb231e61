//! What was measured, as people read it.

use super::statistics::{ratio, spread};
use super::{Measured, Samples};

/// A Markdown table: one row a machine; the ratio is that of the VMM to the first one.
pub fn markdown(measured: &[Measured]) -> Vec<String> {
    let Some(first) = measured.first() else { return Vec::new() };
    let names = || first.of.iter().map(|samples| samples.vmm.as_str());
    let mut head = vec!["RAM".to_owned(), "vCPUs".into(), "pages".into()];
    head.extend(names().map(|name| format!("{name}, ms")));
    head.extend(names().skip(1).map(|name| format!("{name} : {}", names().next().unwrap_or(""))));
    let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let mut lines = vec![line(&head), format!("|{}", "---|".repeat(head.len()))];
    for Measured { cell, of } in measured {
        let mut cells =
            vec![cell.memory.to_string(), cell.cpus.to_string(), cell.pages.as_str().to_owned()];
        cells.extend(of.iter().map(times));
        if let Some((first, others)) = of.split_first() {
            cells.extend(others.iter().map(|other| ratio_cell(first, other)));
        }
        lines.push(line(&cells));
    }
    lines
}

/// What kept a VMM from being measured.
pub fn troubles(measured: &Measured) -> impl Iterator<Item = String> {
    let Measured { cell, of } = measured;
    let told = move |samples: &Samples| -> Vec<String> {
        let place = format!("{} RAM, {} vCPUs, {}", cell.memory, cell.cpus, cell.pages.as_str());
        let tell = |why: &String| format!("{}, {place}: {why}", samples.vmm);
        samples.troubles.iter().map(tell).collect()
    };
    of.iter().flat_map(told)
}

fn times(samples: &Samples) -> String {
    let all = samples.blackouts_ms.concat();
    match spread(&all) {
        None => "not measured".into(),
        Some(of) => format!("{:.2} ({:.2} to {:.2}), n={}", of.median, of.min, of.max, all.len()),
    }
}

fn ratio_cell(first: &Samples, other: &Samples) -> String {
    match ratio(&first.blackouts_ms, &other.blackouts_ms) {
        None => "none".into(),
        Some(r) => format!("{:.1} ({:.1} to {:.1}), p={:.4}", r.ratio, r.low, r.high, r.p),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cell;
    use super::*;
    use crate::scenario::Pages;
    use crate::scenario::size::Size;

    #[test]
    fn a_table_as_it_is_printed() {
        let samples = |vmm: &str, times: &[f64]| Samples {
            vmm: vmm.into(),
            blackouts_ms: times.chunks(1).map(<[f64]>::to_vec).collect(),
            troubles: if times.is_empty() { vec!["no KVM here".into()] } else { Vec::new() },
        };
        let cell = |cpus| Cell { memory: Size(64 << 20), cpus, pages: Pages::Small };
        let (fast, slow) = ([1.0, 1.2, 1.4, 1.1, 1.3], [20.0, 22.0, 24.0, 21.0, 23.0]);
        let measured = [
            Measured { cell: cell(1), of: vec![samples("a", &fast), samples("b", &slow)] },
            Measured { cell: cell(2), of: vec![samples("a", &fast), samples("b", &[])] },
        ];
        let mut lines = markdown(&measured);
        lines.extend(measured.iter().flat_map(troubles));
        insta::assert_snapshot!(lines.join("\n"));
    }
}
