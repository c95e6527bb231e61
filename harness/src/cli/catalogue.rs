//! The `catalogue` command.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::setup::{Ready, writable};
use super::{CliError, ENVIRONMENT, FAILED};
use crate::backend::cpr_vmm::CprVmm;
use crate::catalogue::lab::Record;
use crate::catalogue::random::{self, Loss, Share};
use crate::catalogue::trial::{self, Outcome, Tried};
use crate::catalogue::{BugClass, all, table};
use crate::process::signals::Ending;
use crate::report::stdout::say;
use crate::run::evidence::start;
use crate::run::{Options, schedule};
use crate::scenario::Case;
use crate::scenario::set::Set;

#[derive(Args)]
pub(super) struct Catalogue {
    /// Only classes whose bug or case contains this text; can be repeated.
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Runs of each case without its bug.
    #[arg(long, value_name = "N", default_value_t = 1)]
    clean: u32,
    /// Plant this many random losses instead, and print the share that was detected.
    #[arg(long, value_name = "N", conflicts_with_all = ["filter", "clean", "write"])]
    random: Option<u32>,
    /// Seed of the losses [default: random].
    #[arg(long, value_name = "S", requires = "random")]
    seed: Option<u64>,
    /// Losses to test in parallel; a case that fails because the host is busy counts as detected.
    #[arg(long, value_name = "N", requires = "random", default_value_t = 1)]
    jobs: usize,
    /// Plant only the loss with this number.
    #[arg(long, value_name = "N", conflicts_with_all = ["filter", "clean", "write", "random"])]
    loss: Option<u64>,
    /// Skip the audits, to see what they contribute.
    #[arg(long)]
    no_audits: bool,
    /// Plant the bugs of unproved classes too: on this host one may be noticed.
    #[arg(long, conflicts_with_all = ["random", "loss", "write"])]
    unproved: bool,
    /// Add the results to this record, the column `lab` of the catalogue.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["random", "loss", "write"])]
    record: Option<PathBuf>,
    /// Write the catalogue to this file and run nothing.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Folder for evidence.
    #[arg(long, default_value = "evidence", value_name = "DIR")]
    evidence: PathBuf,
}

/// Runs `catalogue`.
pub(super) fn main(catalogue: &Catalogue) -> Result<ExitCode, CliError> {
    let classes = all().map_err(CliError::usage)?;
    if let Some(path) = &catalogue.write {
        writable(path)?;
        let lab = Record::embedded().map_err(CliError::usage)?;
        let text = table::markdown(&classes, &lab);
        let cannot = |e| CliError::environment(format!("cannot write {}: {e}", path.display()));
        return fs::write(path, text).map(|()| ExitCode::SUCCESS).map_err(cannot);
    }
    let ready = Ready::new(&catalogue.evidence, Ending::AtOnce)?;
    let vmm = CprVmm::carried()
        .map_err(|e| CliError::environment(format!("cannot find my own binary: {e}")))?;
    let options = Options {
        audits: !catalogue.no_audits,
        ..ready.options(Arc::new(vmm.clone()), catalogue.evidence.join("catalogue"), String::new())
    };
    let cases = Set::embedded().map_err(CliError::usage)?.cases;
    if let Some(number) = catalogue.loss {
        return lose(&[number], 1, &cases, &vmm, &options);
    }
    if let Some(count) = catalogue.random {
        let seed = catalogue.seed.unwrap_or_else(|| fastrand::u32(..).into());
        say(format_args!("seed {seed}"));
        let numbers: Vec<_> = random::numbers(seed).take(count as usize).collect();
        return lose(&numbers, catalogue.jobs, &cases, &vmm, &options);
    }
    let wanted = |class: &&BugClass| {
        let named = |text: &String| class.planted.contains(text) || class.case.contains(text);
        catalogue.filter.is_empty() || catalogue.filter.iter().any(named)
    };
    if !classes.iter().any(|class| wanted(&class)) {
        return Err(CliError::usage(
            "no class of bugs matches --filter: `catalogue --write FILE` lists them",
        ));
    }
    let mut seen = Seen::default();
    let mut record = match &catalogue.record {
        Some(path) => Some((path, Record::read(path).map_err(CliError::usage)?)),
        None => None,
    };
    say(format_args!("{:<22} {:<58} {:<14} planted", "bug", "scenario", "clean"));
    for class in classes.iter().filter(wanted) {
        if let Some(why) = &class.unproved
            && !catalogue.unproved
        {
            say(format_args!("{:<22} {:<58} UNPROVED: {why}", class.planted, class.case));
            seen.unproved += 1;
            continue;
        }
        let case = class.find(&cases).map_err(CliError::usage)?;
        let outcome = seen.class(class, case, &vmm, &options, catalogue.clean);
        if let Some((path, record)) = &mut record {
            record.add(class, &start::kernel(), &outcome);
            record.write(path).map_err(CliError::environment)?;
        }
    }
    say(format_args!("\n{}", seen.summary()));
    Ok(ExitCode::from(seen.code()))
}

/// Plants the losses with these numbers.
fn lose(
    numbers: &[u64],
    jobs: usize,
    cases: &[Case],
    vmm: &CprVmm,
    options: &Options,
) -> Result<ExitCode, CliError> {
    let options = Options { evidence: options.evidence.join("random"), ..options.clone() };
    let cases = random::cases(cases).map_err(CliError::usage)?;
    if let Some(report) = random::alarm(&cases, &options) {
        let why =
            format!("{} does not pass even without a loss: {:?}", report.case, report.verdict);
        return Err(CliError::environment(why));
    }
    let mut share = Share::default();
    let plant = |number: &u64| random::plant(*number, &cases, vmm, &options);
    schedule::each(numbers, jobs, plant, |Loss { number, what, noticed }| {
        share.count(&noticed);
        say(format_args!("{number:>10}  {}: {noticed}", what.join("; ")));
    });
    say(format_args!("\n{share}"));
    Ok(ExitCode::from(if share.is_enough() { 0 } else { FAILED }))
}

#[derive(Default)]
struct Seen {
    classes: u32,
    caught: u32,
    clean: u32,
    alarms: u32,
    /// Classes that this host cannot show.
    ignored: u32,
    /// Classes that no scenario has been seen to catch yet.
    unproved: u32,
}

impl Seen {
    /// Runs the case of a class and counts what comes of it; returns what the planted bug came to.
    fn class(
        &mut self,
        class: &BugClass,
        case: &Case,
        vmm: &CprVmm,
        options: &Options,
        clean: u32,
    ) -> Outcome {
        let ignore = |why: String| {
            say(format_args!("{:<22} {:<58} ignored: {why}", class.planted, case.name));
            Outcome::NotRun(why)
        };
        if let Some(Outcome::NotRun(why)) = trial::unmet(class) {
            self.ignored += 1;
            return ignore(why);
        }
        let mut problems = Vec::new();
        for _ in 0..clean {
            let tried = trial::clean(case, options);
            match tried.outcome {
                Outcome::Passed => self.clean += 1,
                Outcome::NotRun(why) => {
                    self.ignored += 1;
                    return ignore(why);
                }
                _ => {
                    self.clean += 1;
                    self.alarms += 1;
                    problems.push(tried);
                }
            }
        }
        self.classes += 1;
        let Tried { outcome: planted, repro_commands } = trial::planted(class, case, vmm, options);
        let (caught, how) = match &planted {
            Outcome::Passed => (false, "NOT CAUGHT".to_owned()),
            Outcome::NotRun(why) => (false, format!("not run: {why}")),
            Outcome::Failed { checks, .. } if planted.is_caught_by(&class.checks) => {
                (true, format!("caught by {}", checks.join(", ")))
            }
            Outcome::Failed { checks, message } => {
                let checks = checks.join(", ");
                (false, format!("WRONG: {checks}, not {}: {message}", class.checks.join(", ")))
            }
        };
        self.caught += u32::from(caught);
        let good = clean as usize - problems.len();
        say(format_args!(
            "{:<22} {:<58} {:<14} {how}",
            class.planted,
            case.name,
            format!("{good} of {clean} pass")
        ));
        let is_proof = problems.is_empty();
        for Tried { outcome, repro_commands } in problems {
            say(format_args!("    clean: {outcome:?}"));
            repro_commands.iter().for_each(|line| say(format_args!("    {line}")));
        }
        if !caught {
            repro_commands.iter().for_each(|line| say(format_args!("    {line}")));
        }
        match is_proof {
            true => planted,
            false => Outcome::NotRun("the case fails without the bug, too".to_owned()),
        }
    }

    fn summary(&self) -> String {
        let Self { classes, caught, clean, alarms, ignored, unproved } = self;
        format!(
            "{caught} of {classes} planted bugs caught, {ignored} ignored, {unproved} unproved, {alarms} false alarms in {clean} clean runs"
        )
    }

    /// Exit status; a run that planted no bug has no result.
    fn code(&self) -> u8 {
        match self.caught == self.classes && self.alarms == 0 {
            false => FAILED,
            true if self.classes == 0 => ENVIRONMENT,
            true => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::all_caught(3, 3, 0, 0)]
    #[case::one_not_noticed(3, 2, 0, FAILED)]
    #[case::a_false_alarm(3, 3, 1, FAILED)]
    #[case::all_ignored(0, 0, 0, ENVIRONMENT)]
    fn planting_nothing_is_not_a_success(
        #[case] classes: u32,
        #[case] caught: u32,
        #[case] alarms: u32,
        #[case] code: u8,
    ) {
        assert_eq!(Seen { classes, caught, alarms, ..Seen::default() }.code(), code);
    }
}
