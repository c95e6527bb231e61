//! The `replay` command.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser};

use super::CliError;
use super::known::Known;
use super::run_cases::{Around, How, run_cases};
use super::setup::Ready;
use super::vmm::{Vmm, backend, vmm_option};
use crate::lab::restart;
use crate::report::folder;
use crate::report::stdout::say;
use crate::run::evidence::start::Start;
use crate::run::watched::Events;
use crate::run::{Options, Report};

#[derive(Args)]
pub(super) struct Replay {
    /// The evidence folder of the case.
    folder: PathBuf,
    #[command(flatten)]
    vmm: Vmm,
    #[command(flatten)]
    known: Known,
    /// Folder for the new evidence [default: replay/ in the parent of FOLDER].
    #[arg(long, value_name = "DIR")]
    evidence: Option<PathBuf>,
}

/// The VMM options recorded in the evidence.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Recorded {
    #[command(flatten)]
    vmm: Vmm,
    #[command(flatten)]
    known: Known,
}

/// Runs `replay`.
pub(super) fn main(replay: &Replay) -> Result<ExitCode, CliError> {
    let (case, start) = folder::to_replay(&replay.folder).map_err(CliError::usage)?;
    let recorded = folder::verdict(&replay.folder);
    let beside = || replay.folder.parent().unwrap_or(Path::new(".")).join("replay");
    let evidence = replay.evidence.clone().unwrap_or_else(beside);
    let again = match &start {
        Some(start) if !replay.vmm.is_chosen() => {
            let mut again = parsed(start)?;
            again.vmm.keep = replay.vmm.keep;
            Some(again)
        }
        _ => None,
    };
    let events = Events::new();
    let ready = Ready::new(&evidence, events.ending())?;
    let vmm = again.as_ref().map_or(&replay.vmm, |again| &again.vmm);
    let known =
        replay.known.or(again.as_ref().map(|again| again.known.clone()).unwrap_or_default());
    let differences = known.read()?;
    let option = vmm_option(vmm) + &known.option();
    let options = ready.options(backend(vmm)?, evidence, option);
    let options = Options { keep: vmm.keep, ..options };
    match start {
        None => say("start.json is missing or damaged: cannot compare versions and host"),
        Some(start) => {
            start.differences(&Start::now(&case, &options)).iter().for_each(say);
        }
    }
    restart::allow();
    let ran = run_cases(
        std::slice::from_ref(&case),
        How::default(),
        &options,
        &events,
        Around::default(),
        differences,
    )?;
    if let Some(entry) = ran.record.cases.first() {
        say(compared(recorded.as_ref(), &entry.report));
    }
    Ok(ran.code)
}

/// Parses the recorded VMM options.
fn parsed(start: &Start) -> Result<Recorded, CliError> {
    let option = &start.vmm_option;
    let wrong = |why: &dyn std::fmt::Display| {
        let why = why.to_string();
        let why = why.lines().next().unwrap_or_default().to_owned();
        CliError::usage(format!(
            "cannot use the recorded VMM options `{}` ({why}): give others",
            option.trim()
        ))
    };
    let words = shlex::split(option).ok_or_else(|| wrong(&"unclosed quote"))?;
    Recorded::try_parse_from(words).map_err(|e| wrong(&e))
}

/// Compares the verdict with the recorded one.
fn compared(recorded: Option<&Report>, now: &Report) -> String {
    match recorded.map(Report::ended) {
        None => "no verdict was recorded".to_owned(),
        Some(was) if was == now.ended() => format!("same verdict as recorded: {was}"),
        Some(was) => format!("verdict differs: was {was}, is {}", now.ended()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Finding;
    use crate::run::Verdict;

    fn report(verdict: Verdict) -> Report {
        let failed_step = Some("step 3 (migrate)".to_owned());
        let failed_step = failed_step.filter(|_| matches!(verdict, Verdict::Fail(_)));
        Report { verdict, failed_step, ..Report::of("a/b", String::new(), String::new()) }
    }

    #[test]
    fn verdicts_are_compared_by_checks_and_step() {
        let failed = |checks: &[&str], message: &str| {
            let findings = checks.iter().map(|check| Finding::new(check, message)).collect();
            report(Verdict::Fail(findings))
        };
        let one = failed(&["fds", "leftovers"], "descriptor 7 is new");
        let alike = failed(&["leftovers", "fds"], "descriptor 9 is new");
        let other = failed(&["pid"], "is gone");
        let elsewhere = Report { failed_step: Some("step 4 (wait)".into()), ..one.clone() };
        let told = [
            compared(Some(&one), &alike),
            compared(Some(&one), &other),
            compared(Some(&one), &elsewhere),
            compared(Some(&report(Verdict::Pass)), &one),
            compared(Some(&one), &report(Verdict::Ignored("needs /dev/kvm".into()))),
            compared(None, &one),
        ];
        insta::assert_snapshot!(told.join("\n"), @r"
        same verdict as recorded: fds, leftovers failed at step 3 (migrate)
        verdict differs: was fds, leftovers failed at step 3 (migrate), is pid failed at step 3 (migrate)
        verdict differs: was fds, leftovers failed at step 3 (migrate), is fds, leftovers failed at step 4 (wait)
        verdict differs: was passed, is fds, leftovers failed at step 3 (migrate)
        verdict differs: was fds, leftovers failed at step 3 (migrate), is ignored (needs /dev/kvm)
        no verdict was recorded
        ");
    }
}
