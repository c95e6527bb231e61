//! Selection of cases, for `list`, `run`, `conform` and `matrix`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::CliError;
use crate::report::stdout::say;
use crate::scenario::Case;
use crate::scenario::set::Set;
use crate::scenario::shard::Shard;

#[derive(Args)]
pub(super) struct Selection {
    /// Only cases whose name contains this text; can be repeated.
    #[arg(long, value_name = "TEXT")]
    pub(super) filter: Vec<String>,
    /// Only part I of N of these cases, such as 1/2; the name of a case decides its part.
    #[arg(long, value_name = "I/N")]
    pub(super) shard: Option<Shard>,
    /// Scenario files or folders [default: scenarios/ here, else the embedded ones].
    #[arg(value_name = "SCENARIO")]
    pub(super) scenarios: Vec<PathBuf>,
}

impl Selection {
    /// True if all cases are selected, except those that run on request only.
    pub(super) fn is_whole(&self) -> bool {
        self.filter.is_empty() && self.scenarios.is_empty() && self.shard.is_none()
    }
}

/// Selected cases and their origin.
pub(super) struct Selected {
    pub(super) cases: Vec<Case>,
    origin: String,
    /// The shard, and the number of cases in all shards.
    part: Option<(Shard, usize)>,
}

impl std::fmt::Display for Selected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (count, origin) = (self.cases.len(), &self.origin);
        let noun = |count| if count == 1 { "case" } else { "cases" };
        match self.part {
            None => write!(f, "{count} {} from {origin}", noun(count)),
            Some((shard, all)) => {
                write!(f, "shard {shard}: {count} of {all} {} from {origin}", noun(all))
            }
        }
    }
}

pub(super) fn select(selection: &Selection) -> Result<Selected, CliError> {
    let found = match selection.scenarios.as_slice() {
        [] => Set::find(),
        paths => Set::at(paths),
    };
    let mut set = found.map_err(CliError::usage)?;
    let wanted = &selection.filter;
    // Naming a file is a request too.
    let requested = !(wanted.is_empty() && selection.scenarios.is_empty());
    set.cases.retain(|c| requested || !c.on_request);
    set.cases.retain(|c| wanted.is_empty() || wanted.iter().any(|text| c.name.contains(text)));
    if set.cases.is_empty() {
        return Err(CliError::usage(format!("no case in {} matches {wanted:?}", set.origin)));
    }
    let part = selection.shard.map(|shard| (shard, set.cases.len()));
    // An empty shard is not an error.
    set.cases.retain(|case| selection.shard.is_none_or(|shard| shard.takes(&case.name)));
    Ok(Selected { cases: set.cases, origin: set.origin, part })
}

pub(super) fn list(selection: &Selection) -> Result<ExitCode, CliError> {
    for case in select(selection)?.cases {
        say(format_args!("{}: {}", case.name, case.summary));
    }
    Ok(ExitCode::SUCCESS)
}
