//! Measures the guest blackout of updates for several VMMs, interleaved, so that background load on
//! the host affects all of them alike.

pub mod compare;
pub mod file;
pub mod floor;
mod host;
pub mod statistics;
pub mod table;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::observe::patience::Patience;
use crate::observe::phases::Phase;
use crate::run::{Options, Report, Verdict, case};
use crate::scenario::size::Size;
use crate::scenario::{Case, Mode, Pages, Step, Vm};

/// A machine to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// RAM.
    pub memory: Size,
    /// vCPUs.
    pub cpus: u32,
    /// Page size of RAM.
    pub pages: Pages,
}

/// A VMM to measure.
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Options to run it with.
    pub options: Options,
    /// The mode of its updates.
    pub mode: Mode,
}

/// The measurements of one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The machine.
    pub cell: Cell,
    /// Samples, in the order of the candidates.
    pub of: Vec<Samples>,
    /// The minimum cost of an update on this host, if measured.
    pub floor: Option<Samples>,
}

/// A metric of an update, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The blackout, measured by the guest.
    Guest,
    /// The blackout, measured from the host.
    Host,
    /// Time for the guest to touch all its RAM before the update.
    TouchBefore,
    /// The same after the update.
    TouchAfter,
    /// Total time of the floor.
    Floor,
}

impl Metric {
    /// Returns the name used in tables.
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

/// Times in milliseconds, one list per boot: updates of the same boot are not independent.
pub type Times = Vec<Vec<f64>>;

/// The measurements of one VMM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// Name of the VMM.
    pub vmm: String,
    /// Times of each update, by metric.
    pub times_ms: BTreeMap<Metric, Times>,
    /// Times of each update by phase, if the VMM reports them.
    pub phases_ms: BTreeMap<Phase, Times>,
    /// Why measurements are missing.
    #[serde(alias = "troubles")]
    pub problems: Vec<String>,
    /// True if the host prevented it from running.
    #[serde(skip)]
    pub broken: bool,
    /// Why it cannot run such a machine on this host, which is not an error.
    #[serde(default)]
    pub cannot: Option<String>,
}

/// How a cell is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Number of boots of each VMM.
    pub runs: u32,
    /// Number of updates per boot.
    pub updates: u32,
    /// Whether to measure the floor too.
    pub floor: bool,
}

/// Returns all combinations of these sizes.
pub fn cells(memory: &[Size], cpus: &[u32], pages: &[Pages]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for &memory in memory {
        for &cpus in cpus {
            cells.extend(pages.iter().map(|&pages| Cell { memory, cpus, pages }));
        }
    }
    cells
}

/// Name of the floor.
pub const FLOOR: &str = "floor";

/// Measures all VMMs in one cell, in turns; `tell` is called with the name and run that is next.
pub fn measure(
    cell: Cell,
    plan: Plan,
    candidates: &[Candidate],
    mut tell: impl FnMut(&str, u32),
) -> Measured {
    let new = |name: &str| Samples { vmm: name.to_owned(), ..Samples::default() };
    let mut of: Vec<Samples> = candidates.iter().map(|c| new(&c.name)).collect();
    let mut floor = plan.floor.then(|| new(FLOOR));
    if let Some(why) = host::lacks_memory(cell) {
        of.iter_mut().chain(&mut floor).for_each(|samples| samples.cannot = Some(why.clone()));
        return Measured { cell, of, floor };
    }
    for run in 0..plan.runs {
        for turn in 0..candidates.len() {
            // Rotate, so that no VMM is always first.
            let index = (turn + run as usize) % candidates.len();
            let Candidate { name, options, mode } = &candidates[index];
            tell(name, run);
            if of[index].cannot.is_some() {
                continue;
            }
            let options = Options { patience: patience(cell, options.patience), ..options.clone() };
            of[index].take(&case::run(&bench_case(cell, plan, run, *mode), &options), plan.updates);
        }
        if let Some(floor) = &mut floor {
            tell(FLOOR, run);
            floor.probe(cell, plan.updates);
        }
    }
    Measured { cell, of, floor }
}

/// Extends the timeouts for a machine with more vCPUs than the host has CPUs, and for large RAM.
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

/// Returns the size in GiB, rounded up.
fn gib(memory: Size) -> u32 {
    u32::try_from(memory.0.div_ceil(1 << 30)).unwrap_or(u32::MAX)
}

impl Samples {
    /// Returns the times of one metric.
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
        let seen = report.blackouts.len();
        let trouble = match &report.verdict {
            Verdict::Pass if seen == updates as usize => return,
            Verdict::Pass => "the blackout of an update was not measured".to_owned(),
            Verdict::Ignored(why) => why.clone(),
            Verdict::Broken(why) => {
                self.broken = true;
                why.clone()
            }
            Verdict::Fail(_) => {
                let lines = [report.verdict.findings(), report.repro_commands()].concat();
                lines.join("\n  ")
            }
        };
        self.trouble(trouble);
    }

    /// Measures the floor `times` times, as one boot.
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

    /// Adds the times of one boot.
    fn boot(&mut self, metric: Metric, times: Vec<f64>) {
        if !times.is_empty() {
            self.times_ms.entry(metric).or_default().push(times);
        }
    }

    fn trouble(&mut self, why: String) {
        if !self.problems.contains(&why) {
            self.problems.push(why);
        }
    }
}

/// Returns the case for one boot. The guest touches one word in each page of its RAM before each
/// update, so that the cost is that of the pages, not of their contents.
fn bench_case(cell: Cell, plan: Plan, run: u32, mode: Mode) -> Case {
    let Cell { memory, cpus, pages } = cell;
    let mut steps = vec![Step::Boot];
    steps.extend((0..plan.updates).map(|_| Step::Measure(mode)));
    steps.push(Step::Quit);
    let cmdline = "words=1".to_owned();
    Case {
        name: format!("bench/{memory}[cpus={cpus},pages={},run={run}]", pages.as_str()),
        summary: "guest blackout of updates".into(),
        seed: u64::from(run) + 1,
        // Touching a GiB for the first time, at boot and after each update, takes seconds.
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
    fn cells_are_all_combinations() {
        let cells = cells(&[Size(1), Size(2)], &[1, 2, 4], &[Pages::Small, Pages::Transparent]);
        assert_eq!(cells.len(), 12);
        assert_eq!(cells[0], Cell { memory: Size(1), cpus: 1, pages: Pages::Small });
        assert_eq!(cells[11], Cell { memory: Size(2), cpus: 4, pages: Pages::Transparent });
    }
}
