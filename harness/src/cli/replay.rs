//! `replay`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::Stop;
use super::run::run_cases;
use super::vmm::Vmm;
use crate::scenario::parse;

#[derive(Args)]
pub(super) struct Replay {
    /// The evidence folder of the case.
    folder: PathBuf,
    #[command(flatten)]
    vmm: Vmm,
    /// Where evidence goes [default: replay/ in the folder's parent].
    #[arg(long, value_name = "DIR")]
    evidence: Option<PathBuf>,
}

/// Runs it.
pub(super) fn main(replay: &Replay) -> Result<ExitCode, Stop> {
    let path = replay.folder.join("case.toml");
    let text = fs::read_to_string(&path)
        .map_err(|e| Stop::usage(format!("cannot read {}: {e}", path.display())))?;
    let case = parse::parse_case(&path.display().to_string(), &text).map_err(Stop::usage)?;
    let beside = || replay.folder.parent().unwrap_or(Path::new(".")).join("replay");
    let evidence = replay.evidence.clone().unwrap_or_else(beside);
    run_cases(&[case], 1, &replay.vmm, evidence, false, None)
}
