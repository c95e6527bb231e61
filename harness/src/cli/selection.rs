//! Which cases: `list` shows them, `run` and `conform` run them.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::Stop;
use crate::report::stdout::say;
use crate::scenario::set::Set;

#[derive(Args)]
pub(super) struct Selection {
    /// Only cases whose name contains this; several: any of them.
    #[arg(long, value_name = "TEXT")]
    pub(super) filter: Vec<String>,
    /// Scenario files or folders [default: scenarios/ here, else the embedded ones].
    #[arg(value_name = "SCENARIO")]
    pub(super) scenarios: Vec<PathBuf>,
}

pub(super) fn select(selection: &Selection) -> Result<Set, Stop> {
    let found = match selection.scenarios.as_slice() {
        [] => Set::find(),
        paths => Set::at(paths),
    };
    let mut set = found.map_err(Stop::usage)?;
    let wanted = &selection.filter;
    // A file that is named is a request too.
    let requested = !(wanted.is_empty() && selection.scenarios.is_empty());
    set.cases.retain(|c| requested || !c.on_request);
    set.cases.retain(|c| wanted.is_empty() || wanted.iter().any(|text| c.name.contains(text)));
    if set.cases.is_empty() {
        return Err(Stop::usage(format!("no case of {} matches {wanted:?}", set.origin)));
    }
    Ok(set)
}

pub(super) fn list(selection: &Selection) -> Result<ExitCode, Stop> {
    for case in select(selection)?.cases {
        say(format_args!("{}: {}", case.name, case.summary));
    }
    Ok(ExitCode::SUCCESS)
}
