//! Selection of cases, for `list`, `run`, `conform` and `matrix`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::CliError;
use super::filter::{self, Filter};
use crate::report::stdout::say;
use crate::scenario::Case;
use crate::scenario::set::Set;
use crate::scenario::shard::Shard;

#[derive(Args)]
pub(super) struct Selection {
    /// Only cases whose name contains this text, or matches this pattern if it has `*` or `?`; with
    /// `!` before it, all but these. Can be repeated.
    #[arg(long, value_name = "FILTER")]
    pub(super) filter: Vec<Filter>,
    /// All but the cases that match, like --filter '!FILTER'; can be repeated.
    #[arg(long, value_name = "FILTER", value_parser = Filter::excluding)]
    skip: Vec<Filter>,
    /// Only the case with exactly this name; can be repeated.
    #[arg(long, value_name = "CASE")]
    exact: Vec<String>,
    /// Only these cases of an earlier run, if they still exist.
    #[arg(skip)]
    again: Option<BTreeSet<String>>,
    /// Use the scenarios embedded in this binary even if there is a folder scenarios/ here.
    #[arg(long, conflicts_with = "scenarios")]
    embedded: bool,
    /// Only part I of N of these cases, such as 1/2; the name of a case decides its part.
    #[arg(long, value_name = "I/N")]
    pub(super) shard: Option<Shard>,
    /// Scenario files or folders [default: scenarios/ here, else the embedded ones].
    #[arg(value_name = "SCENARIO")]
    pub(super) scenarios: Vec<PathBuf>,
}

impl Selection {
    /// Selects by name in the scenarios found here.
    pub(super) fn by_name(filter: Vec<Filter>, shard: Option<Shard>) -> Self {
        let (skip, exact, scenarios) = (Vec::new(), Vec::new(), Vec::new());
        Self { filter, skip, exact, again: None, embedded: false, shard, scenarios }
    }

    /// Selects only the cases with these names, of those that are selected and still exist.
    pub(super) fn only(&mut self, names: BTreeSet<String>) {
        self.again = Some(names);
    }

    /// The files and folders of the scenarios, unless the embedded ones were asked for.
    pub(super) fn files(&self) -> Option<&[PathBuf]> {
        (!self.embedded).then_some(&self.scenarios)
    }

    /// True if all cases are selected, except those that run on request only.
    pub(super) fn is_whole(&self) -> bool {
        let Self { filter, skip, exact, again, embedded: _, shard, scenarios } = self;
        filter.is_empty()
            && skip.is_empty()
            && exact.is_empty()
            && again.is_none()
            && scenarios.is_empty()
            && shard.is_none()
    }
}

/// Selected cases and their origin.
pub(super) struct Selected {
    pub(super) cases: Vec<Case>,
    /// The names of all cases there, also of those that are not selected.
    pub(super) names: Vec<String>,
    /// Cases of an earlier run that no longer exist.
    pub(super) gone: Vec<String>,
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
        [] if selection.embedded => Set::embedded(),
        [] => Set::find(),
        paths => Set::at(paths),
    };
    let mut set = found.map_err(|e| CliError::usage(e.styled()))?;
    let filters: Vec<Filter> = selection.filter.iter().chain(&selection.skip).cloned().collect();
    let (exact, again) = (&selection.exact, &selection.again);
    // Naming a file is a request too.
    let requested = filter::request(&filters)
        || !exact.is_empty()
        || again.is_some()
        || !selection.scenarios.is_empty();
    let names: Vec<String> = set.cases.iter().map(|case| case.name.clone()).collect();
    set.cases.retain(|case| requested || !case.on_request);
    set.cases.retain(|case| exact.is_empty() || exact.contains(&case.name));
    set.cases.retain(|case| filter::select(&filters, &case.name));
    let exists = |name: &&String| names.contains(name);
    let gone: Vec<String> = again.iter().flatten().filter(|name| !exists(name)).cloned().collect();
    if again.as_ref().is_some_and(|again| again.len() == gone.len()) {
        let (origin, gone) = (&set.origin, gone.join(", "));
        let why = format!("no such case of the last run is left in {origin}: {gone}");
        return Err(CliError::usage(why));
    }
    set.cases.retain(|case| again.as_ref().is_none_or(|again| again.contains(&case.name)));
    if let Some(unknown) = exact.iter().find(|name| !names.contains(name)) {
        return Err(no_case(&set.origin, unknown, &names));
    }
    if set.cases.is_empty() {
        let mut requesting = selection.filter.iter().filter(|filter| !filter.excludes());
        let unknown = requesting.find(|filter| !names.iter().any(|name| filter.matches(name)));
        return Err(match unknown {
            Some(filter) => no_case(&set.origin, filter.text(), &names),
            None => CliError::usage(format!("no case in {} is left by these options", set.origin)),
        });
    }
    let part = selection.shard.map(|shard| (shard, set.cases.len()));
    // An empty shard is not an error.
    set.cases.retain(|case| selection.shard.is_none_or(|shard| shard.takes(&case.name)));
    Ok(Selected { cases: set.cases, names, gone, origin: set.origin, part })
}

/// The error that no case is named, or contains, `wanted`.
fn no_case(origin: &str, wanted: &str, names: &[String]) -> CliError {
    let hint = filter::nearest(wanted, names.iter().map(String::as_str));
    let hint = hint.map(|name| format!("; did you mean {name}?")).unwrap_or_default();
    CliError::usage(format!("no case in {origin} matches \"{wanted}\"{hint}"))
}

#[derive(Args)]
pub(super) struct List {
    #[command(flatten)]
    selection: Selection,
    /// Print a JSON array with name and summary of each case.
    #[arg(long)]
    json: bool,
}

pub(super) fn list(list: &List) -> Result<ExitCode, CliError> {
    let cases = select(&list.selection)?.cases;
    if list.json {
        let of = |case: &Case| json!({ "name": case.name, "summary": case.summary });
        say(format_args!("{:#}", cases.iter().map(of).collect::<Value>()));
        return Ok(ExitCode::SUCCESS);
    }
    for case in cases {
        say(format_args!("{}: {}", case.name, case.summary));
    }
    Ok(ExitCode::SUCCESS)
}
