//! The `bench` command.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{ArgMatches, Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::setup::{Ready, try_out};
use super::starting::{QemuOptions, Starting};
use super::vmm::{arguments_by_vmm, candidate, candidate_option};
use super::{CliError, ENVIRONMENT, FAILED};
use crate::bench::compare::compare;
use crate::bench::file::Results;
use crate::bench::{Candidate, Measured, Plan, cells, measure, table};
use crate::observe::host;
use crate::observe::patience::Patience;
use crate::process::signals::Ending;
use crate::report::stdout::say;
use crate::run::Options;
use crate::scenario::size::Size;
use crate::scenario::{Mode, Pages};

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct Bench {
    #[command(subcommand)]
    what: Option<What>,
    /// VMM to measure: `cpr-vmm`, `qemu`, `mock`, or the path of a build; can be repeated, and the
    /// first is the baseline.
    #[arg(long, value_name = "VMM", default_values_t = ["cpr-vmm".to_owned()])]
    vmm: Vec<String>,
    /// Extra argument for the VMM of the last --vmm before it; can be repeated.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    vmm_arg: Vec<String>,
    #[command(flatten)]
    qemu: QemuOptions,
    /// Sizes of guest RAM to measure.
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_values_t = [Size(64 << 20)])]
    memory: Vec<Size>,
    /// Numbers of vCPUs to measure, up to 8.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1], value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: Vec<u32>,
    /// Page sizes of guest RAM to measure.
    #[arg(long, value_enum, value_name = "PAGES", value_delimiter = ',', default_values_t = [Pages::Small])]
    pages: Vec<Pages>,
    /// Boots of each VMM for each machine.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Updates after each boot.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    updates: u32,
    /// Mode of the updates: `cpr-exec`, `cpr-transfer`, or `normal` to a Unix socket; can be repeated.
    #[arg(long, value_name = "MODE", default_values_t = [BenchMode::CprExec], value_enum)]
    mode: Vec<BenchMode>,
    /// Write all measurements to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Folder for evidence.
    #[arg(long, default_value = "evidence", value_name = "DIR")]
    evidence: PathBuf,
}

/// The modes whose blackout is that of an update. In `cpr-reboot` an operator decides how long it is.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BenchMode {
    CprExec,
    CprTransfer,
    Normal,
}

impl BenchMode {
    fn mode(self) -> Mode {
        match self {
            Self::CprExec => Mode::CprExec,
            Self::CprTransfer => Mode::CprTransfer,
            Self::Normal => Mode::Normal,
        }
    }
}

#[derive(Subcommand)]
enum What {
    /// Compare two files written by `bench --json`; exit status 1 if something is slower, or if
    /// NEW lacks times that OLD has.
    Compare {
        /// Results to compare with.
        #[arg(value_name = "OLD.json")]
        old: PathBuf,
        /// Results to check.
        #[arg(value_name = "NEW.json")]
        new: PathBuf,
        /// Ratio of new to old times above which something is slower.
        #[arg(long, value_name = "R", default_value_t = 1.1, value_parser = at_least_one)]
        threshold: f64,
    },
}

fn at_least_one(text: &str) -> Result<f64, String> {
    let ratio = text.parse::<f64>().ok().filter(|ratio| ratio.is_finite() && *ratio >= 1.0);
    ratio.ok_or_else(|| "expected a number of at least 1, such as 1.1".to_owned())
}

/// Runs `bench`.
pub(super) fn main(bench: &Bench, matches: &ArgMatches) -> Result<ExitCode, CliError> {
    match &bench.what {
        Some(What::Compare { old, new, threshold }) => {
            let read = |path: &PathBuf| Results::read(path).map_err(CliError::usage);
            let comparison = compare(&read(old)?, &read(new)?, *threshold);
            comparison.lines().iter().for_each(say);
            if comparison.rows.is_empty() && comparison.lost.is_empty() {
                let why = "the files have nothing in common: measure the same machines and --vmm";
                return Err(CliError::usage(why));
            }
            let failed = comparison.any_slower() || !comparison.lost.is_empty();
            Ok(ExitCode::from(if failed { FAILED } else { 0 }))
        }
        None => run(bench, &arguments_by_vmm(matches)?),
    }
}

fn run(bench: &Bench, arguments: &[Vec<String>]) -> Result<ExitCode, CliError> {
    if host::is_emulated() {
        let why = "cannot measure on this host: its CPUs are emulated; use one with KVM";
        return Err(CliError::environment(why));
    }
    if let Some(path) = &bench.json {
        try_out(path)?;
    }
    let ready = Ready::new(&bench.evidence, Ending::AtOnce)?;
    let starting = Starting::of(bench.qemu.clone());
    let vmms = bench.vmm.iter().enumerate();
    let pairs = vmms.flat_map(|vmm| bench.mode.iter().map(move |mode| (vmm, mode.mode())));
    let options = |((index, name), mode): ((usize, &String), Mode)| {
        let arguments = &arguments[index];
        let backend = candidate(name, &starting, arguments)?;
        let name_of_mode = mode.name();
        let folder = format!("bench/{index}-{}-{name_of_mode}", backend.name());
        let evidence = bench.evidence.join(folder);
        // A missing measurement is an error here, so wait longer than a test would.
        let patience = Patience { measure: Duration::from_secs(20), ..Patience::default() };
        let vmm_option = candidate_option(name, &*backend, &starting, arguments);
        let options = ready.options(backend, evidence, vmm_option);
        let options = Options { audits: false, patience, ..options };
        // As before there were other modes, so that older results can be compared.
        let name = match bench.mode[..] {
            [BenchMode::CprExec] => name.clone(),
            _ => format!("{name} {name_of_mode}"),
        };
        Ok(Candidate { name, options, mode })
    };
    let candidates = pairs.map(options).collect::<Result<Vec<_>, CliError>>()?;
    bench.qemu.check(candidates.iter().map(|candidate| &*candidate.options.backend))?;
    // The floor needs KVM, and is only comparable with VMMs that use it.
    let floor = Path::new("/dev/kvm").exists()
        && candidates.iter().any(|candidate| candidate.options.backend.uses_kvm());
    let plan = Plan { runs: bench.runs, updates: bench.updates, floor };
    let cells = cells(&bench.memory, &bench.cpus, &bench.pages);
    let turns = candidates.len() + usize::from(floor);
    let bar = progress(cells.len() as u64 * u64::from(plan.runs) * turns as u64);
    let mut measured: Vec<Measured> = Vec::new();
    for (index, cell) in (1..).zip(&cells) {
        let done = (index - 1) as u64 * u64::from(plan.runs) * turns as u64;
        let mut turn = 0;
        let new = measure(*cell, plan, &candidates, |name, run| {
            bar.set_position(done + turn);
            turn += 1;
            bar.set_message(format!("{cell}: {name}, run {} of {}", run + 1, plan.runs));
        });
        for why in table::problems(&new).chain(table::left_out(&new)) {
            bar.suspend(|| super::complain(&why.to_string()));
        }
        measured.push(new);
    }
    bar.finish_and_clear();
    for line in table::markdown(&measured) {
        say(line);
    }
    say("\nRatios are of medians (95 % bootstrap interval); p is from a permutation test.");
    say("host: observed from outside through the mailbox. floor: exec, an empty VM and its state.");
    let mut samples = measured.iter().flat_map(|measured| &measured.of);
    let nothing = samples.all(|samples| samples.cannot.is_some());
    let broken = measured.iter().flat_map(|measured| &measured.of).any(|samples| samples.broken);
    let troubled = measured.iter().any(|measured| table::problems(measured).next().is_some());
    if let Some(path) = &bench.json {
        Results::here(measured).write(path).map_err(CliError::environment)?;
    }
    Ok(ExitCode::from(match (broken || nothing, troubled) {
        (true, _) => ENVIRONMENT,
        (false, true) => FAILED,
        (false, false) => 0,
    }))
}

/// Progress bar, shown on a terminal only.
fn progress(length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed}, {eta} to go: {msg}")
    {
        bar.set_style(style);
    }
    bar
}
