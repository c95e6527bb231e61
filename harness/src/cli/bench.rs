//! `bench`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::vmm::{contender, contender_option};
use super::{FAILED, Stop};
use crate::bench::{Contender, Measured, Plan, cells, measure, table};
use crate::report::stdout::say;
use crate::run::{Options, Patience, orphans, signals};
use crate::scenario::Pages;
use crate::scenario::size::Size;

#[derive(Args)]
pub(super) struct Bench {
    /// A VMM: `cpr-vmm`, `qemu`, `mock`, or the path of a build; several are compared with the
    /// first.
    #[arg(long, value_name = "VMM", default_values_t = ["cpr-vmm".to_owned()])]
    vmm: Vec<String>,
    /// RAM of the guest.
    #[arg(long, value_name = "SIZE", value_delimiter = ',', default_values_t = [Size(64 << 20)])]
    memory: Vec<Size>,
    /// vCPUs of the guest.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1])]
    cpus: Vec<u32>,
    /// Page size of the guest's RAM.
    #[arg(long, value_enum, value_name = "PAGES", value_delimiter = ',', default_values_t = [Pages::Small])]
    pages: Vec<Pages>,
    /// How often each VMM is started for each machine.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// How often each of them is updated.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    updates: u32,
    /// Write all that was measured to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where evidence goes.
    #[arg(long, default_value = "evidence", value_name = "DIR")]
    evidence: PathBuf,
}

/// Runs it.
pub(super) fn main(bench: &Bench) -> Result<ExitCode, Stop> {
    signals::guard();
    orphans::adopt();
    let options = |(index, name): (usize, &String)| {
        let backend = contender(name)?;
        let evidence = bench.evidence.join(format!("bench/{index}-{}", backend.name()));
        let (patience, vmm_option) = (Patience::default(), contender_option(name));
        let options = Options { backend, evidence, keep: false, patience, vmm_option };
        Ok(Contender { name: name.clone(), options })
    };
    let contenders = bench.vmm.iter().enumerate().map(options).collect::<Result<Vec<_>, Stop>>()?;
    let plan = Plan { runs: bench.runs, updates: bench.updates };
    let mut measured: Vec<Measured> = Vec::new();
    for cell in cells(&bench.memory, &bench.cpus, &bench.pages) {
        let new = measure(cell, plan, &contenders);
        for trouble in table::troubles(&new) {
            eprintln!("cpr-harness: {trouble}");
        }
        measured.push(new);
    }
    say("the guest stands still so long in one update: median (least to most); ratio of medians");
    say("(95 % of resamplings), p: share of random regroupings that are as far apart\n");
    for line in table::markdown(&measured) {
        say(line);
    }
    if let Some(path) = &bench.json {
        let cannot = |e: &dyn std::fmt::Display| {
            Stop::environment(format!("cannot write {}: {e}", path.display()))
        };
        let text = serde_json::to_string_pretty(&measured).map_err(|e| cannot(&e))?;
        fs::write(path, text + "\n").map_err(|e| cannot(&e))?;
    }
    let troubled = measured.iter().any(|m| m.of.iter().any(|samples| !samples.troubles.is_empty()));
    Ok(ExitCode::from(if troubled { FAILED } else { 0 }))
}
