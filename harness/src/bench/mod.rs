//! How long the guest stands still: VMMs side by side, interleaved, so that what the machine does
//! meanwhile meets all of them alike.

pub mod statistics;
pub mod table;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::run::{Options, Report, Verdict, case};
use crate::scenario::size::Size;
use crate::scenario::{Case, Migrate, Pages, Step, Vm, Wait};

/// One machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// RAM.
    pub memory: Size,
    /// vCPUs.
    pub cpus: u32,
    /// Page size of RAM.
    pub pages: Pages,
}

/// A VMM that is measured.
pub struct Contender {
    /// What it is called.
    pub name: String,
    /// How it is run.
    pub options: Options,
}

/// What was measured in one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The machine.
    pub cell: Cell,
    /// In the order of the contenders.
    pub of: Vec<Samples>,
}

/// The blackouts of one VMM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// The VMM.
    pub vmm: String,
    /// Each update's, in milliseconds, as the guest saw it; one list for each boot, because the
    /// updates of one boot have more in common than others.
    pub blackouts_ms: Vec<Vec<f64>>,
    /// Why there are none, or fewer.
    pub troubles: Vec<String>,
}

/// How a cell is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Times that each VMM is started.
    pub runs: u32,
    /// Updates of each of them.
    pub updates: u32,
}

/// All machines of these sizes.
pub fn cells(memory: &[Size], cpus: &[u32], pages: &[Pages]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &memory in memory {
        for &cpus in cpus {
            cells.extend(pages.iter().map(|&pages| Cell { memory, cpus, pages }));
        }
    }
    cells
}

/// Measures all VMMs in one cell, one after the other, again and again.
pub fn measure(cell: Cell, plan: Plan, contenders: &[Contender]) -> Measured {
    let new = |contender: &Contender| Samples { vmm: contender.name.clone(), ..Samples::default() };
    let mut of: Vec<Samples> = contenders.iter().map(new).collect();
    for run in 0..plan.runs {
        for turn in 0..contenders.len() {
            // Nobody is always first.
            let index = (turn + run as usize) % contenders.len();
            let report = case::run(&bench_case(cell, plan, run), &contenders[index].options);
            of[index].take(&report, plan.updates);
        }
    }
    Measured { cell, of }
}

impl Samples {
    fn take(&mut self, report: &Report, updates: u32) {
        let ms = |blackout: &Duration| blackout.as_secs_f64() * 1e3;
        if !report.blackouts.is_empty() {
            self.blackouts_ms.push(report.blackouts.iter().map(ms).collect());
        }
        let trouble = match &report.verdict {
            Verdict::Pass if report.blackouts.len() == updates as usize => return,
            Verdict::Pass => "the guest did not see the blackout of every update".to_owned(),
            Verdict::Ignored(why) | Verdict::Broken(why) => why.clone(),
            Verdict::Fail(_) => report.verdict.findings().join("; "),
        };
        if !self.troubles.contains(&trouble) {
            self.troubles.push(trouble);
        }
    }
}

/// The guest has touched all its RAM before each update.
fn bench_case(cell: Cell, plan: Plan, run: u32) -> Case {
    let Cell { memory, cpus, pages } = cell;
    let sweep = Step::Wait(Wait::Sweeps(1));
    let mut steps = vec![Step::Boot];
    for _ in 0..plan.updates {
        steps.extend([sweep.clone(), Step::Migrate(Migrate::default())]);
    }
    steps.push(Step::Quit);
    Case {
        name: format!("bench/{memory}[cpus={cpus},pages={},run={run}]", pages.as_str()),
        summary: "how long the guest stands still".into(),
        seed: u64::from(run) + 1,
        // A guest's first sweep over each GiB takes seconds.
        deadline_ms: 120_000 + u64::from(plan.updates) * (memory.0 >> 30) * 20_000,
        on_request: true,
        steps,
        vm: Vm { guest: "pattern".into(), memory, cpus, pages, ..Vm::default() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_meets_every_other() {
        let cells = cells(&[Size(1), Size(2)], &[1, 2, 4], &[Pages::Small, Pages::Transparent]);
        assert_eq!(cells.len(), 12);
        assert_eq!(cells[0], Cell { memory: Size(1), cpus: 1, pages: Pages::Small });
        assert_eq!(cells[11], Cell { memory: Size(2), cpus: 4, pages: Pages::Transparent });
    }
}
