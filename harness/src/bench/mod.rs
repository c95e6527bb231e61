//! How long the guest stands still: VMMs side by side, interleaved, so that what the machine does
//! meanwhile meets all of them alike.

pub mod compare;
pub mod file;
pub mod floor;
mod host;
pub mod statistics;
pub mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::observe::phases::Phase;
use crate::run::{Options, Patience, Report, Verdict, case};
use crate::scenario::size::Size;
use crate::scenario::{Case, Pages, Step, Vm};

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
    /// The least that an update can cost here, if that was asked for.
    pub floor: Option<Samples>,
}

/// What is measured of an update, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// How long the guest stands still, as it sees it itself.
    Guest,
    /// The same as it is seen from the host.
    Host,
    /// How long the guest takes to touch all its RAM before the update.
    TouchBefore,
    /// How long it takes afterwards.
    TouchAfter,
    /// All of the floor.
    Floor,
}

impl Metric {
    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "blackout, guest",
            Self::Host => "blackout, host",
            Self::TouchBefore => "touch before",
            Self::TouchAfter => "touch after",
            Self::Floor => "floor",
        }
    }
}

/// Times in milliseconds: a list for each boot, because the updates of one boot have more in common
/// than others.
pub type Times = Vec<Vec<f64>>;

/// What was measured of one VMM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// The VMM.
    pub vmm: String,
    /// Of each update.
    pub times_ms: BTreeMap<Metric, Times>,
    /// Of each update, where the VMM tells.
    pub phases_ms: BTreeMap<Phase, Times>,
    /// Why there are none, or fewer.
    pub troubles: Vec<String>,
    /// This machine did not let it be run.
    #[serde(skip)]
    pub broken: bool,
    /// Why it cannot run such a machine on this host, which is no trouble.
    #[serde(default)]
    pub cannot: Option<String>,
}

/// How a cell is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Times that each VMM is started.
    pub runs: u32,
    /// Updates of each of them.
    pub updates: u32,
    /// Measure the floor too.
    pub floor: bool,
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

/// How the floor is called.
pub const FLOOR: &str = "floor";

/// Measures all VMMs in one cell, one after the other, again and again; `tell` hears what is next.
pub fn measure(
    cell: Cell,
    plan: Plan,
    contenders: &[Contender],
    mut tell: impl FnMut(&str, u32),
) -> Measured {
    let new = |name: &str| Samples { vmm: name.to_owned(), ..Samples::default() };
    let mut of: Vec<Samples> = contenders.iter().map(|c| new(&c.name)).collect();
    let mut floor = plan.floor.then(|| new(FLOOR));
    if let Some(why) = host::lacks_memory(cell) {
        of.iter_mut().chain(&mut floor).for_each(|samples| samples.cannot = Some(why.clone()));
        return Measured { cell, of, floor };
    }
    for run in 0..plan.runs {
        for turn in 0..contenders.len() {
            // Nobody is always first.
            let index = (turn + run as usize) % contenders.len();
            let Contender { name, options } = &contenders[index];
            tell(name, run);
            if of[index].cannot.is_some() {
                continue;
            }
            let options = Options { patience: patience(cell, options.patience), ..options.clone() };
            of[index].take(&case::run(&bench_case(cell, plan, run), &options), plan.updates);
        }
        if let Some(floor) = &mut floor {
            tell(FLOOR, run);
            floor.probe(cell, plan.updates);
        }
    }
    Measured { cell, of, floor }
}

/// More for a machine that is larger than the host: its vCPUs wait for each other.
fn patience(cell: Cell, patience: Patience) -> Patience {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
    let times = 1 + cell.cpus / cores.max(1);
    let of_ram = Duration::from_secs(30).saturating_mul(gib(cell.memory));
    Patience {
        boot: patience.boot * times + of_ram,
        guest: patience.guest * times + of_ram,
        update: patience.update * times,
        beat: patience.beat * times,
        ..patience
    }
}

/// Begun GiB.
fn gib(memory: Size) -> u32 {
    u32::try_from(memory.0.div_ceil(1 << 30)).unwrap_or(u32::MAX)
}

impl Samples {
    /// The times of one metric.
    pub fn times(&self, metric: Metric) -> &[Vec<f64>] {
        self.times_ms.get(&metric).map_or(&[], Vec::as_slice)
    }

    fn take(&mut self, report: &Report, updates: u32) {
        if let Verdict::Ignored(why) = &report.verdict {
            self.cannot = Some(why.clone());
            return;
        }
        let ms = |time: &Duration| time.as_secs_f64() * 1e3;
        self.boot(Metric::Guest, report.blackouts.iter().map(ms).collect());
        self.boot(Metric::Host, report.host_seen.iter().map(|seen| ms(&seen.blackout)).collect());
        let touches: Vec<_> = report.host_seen.iter().filter_map(|seen| seen.touch).collect();
        self.boot(Metric::TouchBefore, touches.iter().map(|touch| ms(&touch.before)).collect());
        self.boot(Metric::TouchAfter, touches.iter().map(|touch| ms(&touch.after)).collect());
        for phase in Phase::ALL {
            let times = report.phases.iter().filter_map(|update| update.took(phase));
            let times: Vec<f64> = times.map(|took| ms(&took)).collect();
            if !times.is_empty() {
                self.phases_ms.entry(phase).or_default().push(times);
            }
        }
        let seen = report.blackouts.len().min(report.host_seen.len());
        let trouble = match &report.verdict {
            Verdict::Pass if seen == updates as usize => return,
            Verdict::Pass => "the blackout of some update was not seen".to_owned(),
            Verdict::Ignored(why) => why.clone(),
            Verdict::Broken(why) => {
                self.broken = true;
                why.clone()
            }
            Verdict::Fail(_) => {
                let lines = [report.verdict.findings(), report.to_type()].concat();
                lines.join("\n  ")
            }
        };
        self.trouble(trouble);
    }

    /// Measures the floor as often as there are updates in a run.
    fn probe(&mut self, cell: Cell, times: u32) {
        let probes = (0..times).map(|_| floor::probe(cell)).collect::<Result<Vec<_>, _>>();
        let probes = match probes {
            Ok(probes) => probes,
            Err(why) => return self.trouble(why),
        };
        self.boot(Metric::Floor, probes.iter().map(floor::Stamps::total_ms).collect());
        let mut phases: BTreeMap<Phase, Vec<f64>> = BTreeMap::new();
        for (phase, ms) in probes.iter().flat_map(floor::Stamps::phases_ms) {
            phases.entry(phase).or_default().push(ms);
        }
        for (phase, times) in phases {
            self.phases_ms.entry(phase).or_default().push(times);
        }
    }

    /// What one boot has given.
    fn boot(&mut self, metric: Metric, times: Vec<f64>) {
        if !times.is_empty() {
            self.times_ms.entry(metric).or_default().push(times);
        }
    }

    fn trouble(&mut self, why: String) {
        if !self.troubles.contains(&why) {
            self.troubles.push(why);
        }
    }
}

/// The guest has touched all its RAM before each update: one word in each page, which costs what a
/// page costs and not what its content does.
fn bench_case(cell: Cell, plan: Plan, run: u32) -> Case {
    let Cell { memory, cpus, pages } = cell;
    let mut steps = vec![Step::Boot];
    steps.extend((0..plan.updates).map(|_| Step::Measure));
    steps.push(Step::Quit);
    let cmdline = "words=1".to_owned();
    Case {
        name: format!("bench/{memory}[cpus={cpus},pages={},run={run}]", pages.as_str()),
        summary: "how long the guest stands still".into(),
        seed: u64::from(run) + 1,
        // To touch a GiB for the first time, at boot and after each update, takes seconds.
        deadline_ms: 120_000 * (1 + u64::from(cpus) / 2)
            + u64::from(plan.updates + 1) * u64::from(gib(memory)) * 30_000,
        max_blackout_ms: None,
        on_request: true,
        steps,
        vm: Vm { guest: "pattern".into(), memory, cpus, pages, cmdline, ..Vm::default() },
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
