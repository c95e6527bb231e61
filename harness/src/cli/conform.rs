//! The `conform` command.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args};

use super::known::Known;
use super::selection::{Selection, select};
use super::setup::{Ready, writable};
use super::starting::Starting;
use super::vmm::{arguments_by_vmm, candidate, candidate_option};
use super::{CliError, ENVIRONMENT, FAILED, cores};
use crate::conform::compare::{Comparison, compare};
use crate::conform::differences::Differences;
use crate::conform::table::{self, Outcome, Row};
use crate::process::signals::Ending;
use crate::report::stdout::say;
use crate::run::{Options, Report, Verdict, case, schedule};
use crate::scenario::Case;

#[derive(Args)]
pub(super) struct Conform {
    #[command(flatten)]
    selection: Selection,
    /// The two VMMs, ours first: `cpr-vmm`, `qemu`, `mock`, or the path of a build.
    #[arg(long, value_name = "VMM", required = true)]
    vmm: Vec<String>,
    /// Extra argument for the VMM of the last --vmm before it; can be repeated.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    vmm_arg: Vec<String>,
    #[command(flatten)]
    starting: Starting,
    #[command(flatten)]
    known: Known,
    /// Cases to run in parallel [default: number of CPUs].
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Write the table to this file; requires a run of all cases.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Run nothing: compare the results that an earlier run left in --evidence.
    #[arg(long)]
    again: bool,
    /// Folder for evidence.
    #[arg(long, default_value = "evidence", value_name = "DIR")]
    evidence: PathBuf,
}

/// Runs `conform`.
pub(super) fn main(conform: &Conform, matches: &ArgMatches) -> Result<ExitCode, CliError> {
    let [first, second] = conform.vmm.as_slice() else {
        return Err(CliError::usage("conform compares two VMMs: give --vmm twice"));
    };
    let whole = conform.selection.is_whole();
    if conform.write.is_some() && !whole {
        let why = "--write requires a run of all cases: omit all options that select cases";
        return Err(CliError::usage(why));
    }
    let arguments = arguments_by_vmm(matches)?;
    let set = select(&conform.selection)?;
    let mut differences = conform.known.read()?;
    if let Some(path) = &conform.write {
        writable(path)?;
    }
    let ready = Ready::new(&conform.evidence, Ending::AtOnce)?;
    let options = |name: &String, arguments: &[String], place: &str| -> Result<_, CliError> {
        let backend = candidate(name, &conform.starting, arguments)?;
        let option = candidate_option(name, &*backend, &conform.starting, arguments);
        let option = option + &conform.known.option();
        Ok(ready.options(backend, conform.evidence.join("conform").join(place), option))
    };
    let one = options(first, &arguments[0], "first")?;
    let two = options(second, &arguments[1], "second")?;
    conform.starting.qemu.check([&*one.backend, &*two.backend])?;
    let vmm = two.backend.name();
    let (mut rows, mut broken) = (Vec::new(), false);
    let jobs = conform.jobs.map_or_else(cores, NonZeroUsize::get);
    let mut done = |pair: (Report, Report)| {
        let outcome = outcome(&pair, vmm, &mut differences);
        let case = pair.0.case.clone();
        say(format_args!("{case}: {outcome}"));
        if matches!(outcome, Outcome::Unlisted(_)) {
            for report in [&pair.0, &pair.1].iter().filter(|r| r.verdict != Verdict::Pass) {
                report.repro_commands().iter().for_each(|line| say(format_args!("  {line}")));
            }
        }
        broken |=
            [&pair.0.verdict, &pair.1.verdict].iter().any(|v| matches!(v, Verdict::Broken(_)));
        rows.push(Row { case, outcome });
    };
    if conform.again {
        for case in &set.cases {
            done(earlier(case, &one, &two)?);
        }
    } else {
        schedule::pairs(&set.cases, jobs, &one, &two, done);
    }
    let mut good = !rows.iter().any(|row| matches!(row.outcome, Outcome::Unlisted(_)));
    say("");
    for (what, count) in table::counts(&rows) {
        say(format_args!("{count} {what}"));
    }
    if whole {
        for difference in differences.unseen(vmm) {
            good = false;
            say(format_args!(
                "{} was not seen: remove it from {} if {vmm} is fixed",
                difference.name,
                differences.file()
            ));
        }
    }
    if let Some(path) = conform.write.as_ref().filter(|_| broken) {
        say(format_args!("{} was not written: some cases could not be run", path.display()));
    } else if let Some(path) = &conform.write {
        let text =
            table::markdown(&one.backend.title(), &two.backend.title(), differences.of(vmm), &rows);
        fs::write(path, text)
            .map_err(|e| CliError::environment(format!("cannot write {}: {e}", path.display())))?;
    }
    let compared = rows.iter().any(|row| !matches!(row.outcome, Outcome::Ignored(_)));
    if !compared {
        say("no case was compared: there is no result");
    }
    Ok(ExitCode::from(match good {
        false => FAILED,
        true if broken || !compared => ENVIRONMENT,
        true => 0,
    }))
}

fn earlier(case: &Case, first: &Options, second: &Options) -> Result<(Report, Report), CliError> {
    let report = |options: &Options| {
        let folder = options.evidence.display();
        let cannot = |e| format!("cannot read the verdict on {} in {folder}: {e}", case.name);
        case::earlier(case, options).map_err(|e| CliError::usage(cannot(e)))
    };
    match case::ignored_by_either(case, first, second) {
        Some(ignored) => Ok(ignored),
        None => Ok((report(first)?, report(second)?)),
    }
}

fn outcome(
    (first, second): &(Report, Report),
    vmm: &str,
    differences: &mut Differences,
) -> Outcome {
    let differs = match compare(first, second) {
        Comparison::Compared(differs) => differs,
        Comparison::Ignored(why) | Comparison::Broken(why) => {
            return Outcome::Ignored(why);
        }
    };
    differences.compared(&first.case);
    let (mut names, mut unlisted) = (BTreeSet::new(), Vec::new());
    for differs in differs {
        match differences.find(vmm, &first.case, &differs) {
            Some(difference) => {
                names.insert(difference.name.clone());
            }
            None => unlisted.push(differs.to_string()),
        }
    }
    match (unlisted.is_empty(), names.is_empty()) {
        (false, _) => Outcome::Unlisted(unlisted),
        (true, true) => Outcome::Same,
        (true, false) => {
            let pass = first.verdict == Verdict::Pass && second.verdict == Verdict::Pass;
            Outcome::Known { names, pass }
        }
    }
}
