//! The `explore` command.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::known::Known;
use super::setup::{Ready, try_out};
use super::vmm::{Vmm, backend, vmm_option};
use super::{CliError, ENVIRONMENT, FAILED};
use crate::explore::coverage::Coverage;
use crate::explore::found::{self, Confirmed, THEME, Written};
use crate::explore::grammar::{Grammar, Sequence};
use crate::explore::search::{self, Extent, Ran};
use crate::explore::shrink::Budget;
use crate::explore::vocabulary::Vocabulary;
use crate::process::signals::Ending;
use crate::report::case_text::details;
use crate::report::stdout::say;
use crate::run::case::quoted;
use crate::run::{Options, Report, Verdict};
use crate::scenario::write::of_step;
use crate::scenario::{SerialKind, Vm as Machine};

#[derive(Args)]
pub(super) struct Explore {
    /// Seed of the exploration; the same seed gives the same sequences [default: random].
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: Option<u64>,
    /// Total steps to run, over all sequences.
    #[arg(long, value_name = "N", required_unless_present = "duration")]
    steps: Option<NonZeroUsize>,
    /// How long to run, such as 10m or 1h30m; a sequence that has started is finished.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration, id = "duration")]
    duration: Option<Duration>,
    /// Sequences to run in parallel.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN)]
    jobs: NonZeroUsize,
    /// Folder for the scenario of a failure [default: scenarios/found in a working tree, else
    /// found].
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// Folder for evidence.
    #[arg(long, default_value = "evidence", value_name = "DIR")]
    evidence: PathBuf,
    /// Most runs to spend on shrinking a failure.
    #[arg(long, value_name = "N", default_value_t = 200)]
    shrink_runs: usize,
    /// Most time to spend on shrinking a failure.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "10m")]
    shrink_for: Duration,
    /// Write the seed, the coverage and the failure to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    vmm: Vmm,
    #[command(flatten)]
    known: Known,
}

/// What is printed at the end, also after a signal.
struct Told {
    grammar: Arc<Grammar>,
    coverage: Coverage,
    bar: ProgressBar,
}

impl Told {
    fn line(&self, line: impl std::fmt::Display) {
        self.bar.suspend(|| say(line));
    }

    fn coverage(&self) {
        let Coverage { sequences, ignored, steps, .. } = self.coverage;
        let ignored = match ignored {
            0 => String::new(),
            n => format!(", ignored: {n}"),
        };
        self.line(format_args!(
            "\nsequences: {sequences}, steps: {steps}{ignored}\n\n{}\nupdates: {}",
            self.coverage.table(&self.grammar),
            self.coverage.outcomes()
        ));
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `explore`.
pub(super) fn main(explore: &Explore) -> Result<ExitCode, CliError> {
    if let Some(path) = &explore.json {
        try_out(path)?;
    }
    if let Some(folder) = &explore.write {
        // It is created again for a failure.
        std::fs::create_dir_all(folder)
            .map(|()| drop(std::fs::remove_dir(folder)))
            .map_err(|e| CliError::usage(format!("cannot create {}: {e}", folder.display())))?;
    }
    let differences = explore.known.read()?;
    let seed = explore.seed.unwrap_or_else(|| fastrand::u32(..).into());
    let command = command_line(explore, seed);
    let began = Instant::now();
    let told: Arc<OnceLock<Mutex<Told>>> = Arc::default();
    let at_end = told.clone();
    // Before the backend is created: probing another build starts it.
    let tell = move || {
        let Some(told) = at_end.get() else { return };
        // The lock is never released, so failures caused by this exit are not printed.
        let told = std::mem::ManuallyDrop::new(lock(told));
        told.bar.finish_and_clear();
        told.line("\ninterrupted");
        told.coverage();
    };
    let ready = Ready::new(&explore.evidence, Ending::After(Box::new(tell)))?;
    say(format_args!("seed {seed}; run again: {command}"));
    let backend = backend(&explore.vmm)?;
    if let Some(why) = Vocabulary::unmet(&*backend, &Machine::default()) {
        return Err(CliError::environment(why));
    }
    let grammar = Arc::new(Grammar::new(&*backend));
    let bar = progress_bar(explore);
    let coverage = Coverage::default();
    let told = told.get_or_init(|| Mutex::new(Told { grammar: grammar.clone(), coverage, bar }));
    let option = vmm_option(&explore.vmm) + &explore.known.option();
    let options = ready.options(backend.clone(), explore.evidence.clone(), option);
    let options = Options { keep: explore.vmm.keep, ..options };
    let extent = Extent {
        seed,
        steps: explore.steps.map(NonZeroUsize::get),
        until: explore.duration.map(|duration| began + duration),
        jobs: explore.jobs.get(),
    };
    let differences = Mutex::new(differences.anywhere());
    let known = |report: &Report| {
        let mut differences = differences.lock().unwrap_or_else(PoisonError::into_inner);
        differences.of_failure(backend.name(), report)
    };
    let hunted = search::search(&grammar, extent, &options, &known, |ran| {
        let mut told = lock(told);
        told.coverage.add(&grammar, &ran.case, &ran.report);
        told.bar.inc(ran.case.steps.len() as u64 - 1);
        told.line(line(ran));
    });
    let failure = hunted.map_err(CliError::environment)?;
    let written = match &failure {
        None => None,
        Some(ran) => Some(follow_up(explore, ran, &command, &grammar, &options, told)?),
    };
    let told = lock(told);
    told.bar.finish_and_clear();
    told.coverage();
    if let Some(path) = &explore.json {
        write_json(path, seed, &told.coverage, failure.as_ref(), written.as_ref())?;
    }
    match written {
        None => {
            let took = humantime::format_duration(Duration::from_secs(began.elapsed().as_secs()));
            say(format_args!("\nnothing found in {took}"));
            Ok(ExitCode::from(if told.coverage.proves_something() { 0 } else { ENVIRONMENT }))
        }
        Some(written) => {
            announce(&written);
            Ok(ExitCode::from(FAILED))
        }
    }
}

/// Confirms and shrinks a failing sequence, and writes it as a scenario.
fn follow_up(
    explore: &Explore,
    ran: &Ran,
    command: &str,
    grammar: &Grammar,
    options: &Options,
    told: &Mutex<Told>,
) -> Result<Written, CliError> {
    // --keep applies to the original failure only.
    let options = &Options { keep: false, ..options.clone() };
    let nothing = || CliError::environment("the failure has no finding");
    let confirmed = found::confirm(ran, options).ok_or_else(nothing)?;
    let Confirmed { failed, runs, .. } = confirmed;
    let mut smallest = confirmed.sequence.clone();
    if confirmed.is_certain() {
        lock(told).line(format_args!("  failed {failed} of {runs} times; shrinking"));
        let budget = Budget { runs: explore.shrink_runs, time: explore.shrink_for };
        let shrunk = found::shrink(&confirmed, grammar, options, budget, |candidate, fails| {
            if fails {
                lock(told).line(format_args!("  still fails: {}", in_short(candidate)));
            }
        });
        let why = if shrunk.is_minimal { "" } else { "; shrink budget exhausted" };
        lock(told).line(format_args!("  {} runs{why}", shrunk.runs));
        smallest = shrunk.sequence;
    } else {
        lock(told).line(format_args!("  flaky: failed {failed} of {runs} times; not shrunk"));
    }
    let folder = folder(explore);
    found::write(&smallest, &confirmed.signature, grammar, command, &folder, options)
        .inspect(|written| {
            if !confirmed.signature.is_in(&written.report) {
                lock(told).line(format_args!(
                    "  run once from {}, it did not fail in the same way",
                    written.path.display()
                ));
            }
        })
        .map_err(CliError::environment)
}

fn folder(explore: &Explore) -> PathBuf {
    let tree = Path::new("scenarios");
    explore.write.clone().unwrap_or_else(|| match tree.is_dir() {
        true => tree.join(THEME),
        false => THEME.into(),
    })
}

/// Prints the failure, its scenario and how to repeat it.
fn announce(written: &Written) {
    let Written { path, text, report } = written;
    let findings = match report.verdict.findings() {
        findings if findings.is_empty() => "it passed when run from its file".to_owned(),
        findings => findings.join("\n"),
    };
    let step = report.failed_step.as_deref().unwrap_or("no step");
    say(format_args!(
        "\nfound a failure at {step}:\n{findings}\n\n{text}\nwritten to {}\n{}",
        path.display(),
        report.repro_commands().join("\n"),
    ));
}

fn progress_bar(explore: &Explore) -> ProgressBar {
    use std::io::IsTerminal;
    if !std::io::stdout().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match explore.steps {
        Some(steps) => {
            (ProgressBar::new(steps.get() as u64), "{bar:30} {pos}/{len} steps {elapsed}")
        }
        None => (ProgressBar::no_length(), "{spinner} {pos} steps {elapsed}"),
    };
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// One sequence as a line.
fn line(ran: &Ran) -> String {
    let Ran { number, sequence, case, report, known } = ran;
    let steps = case.steps.len() - 1;
    let vm = machine(&sequence.vm);
    let again = format!("--seed {} --steps {}", sequence.seed, sequence.steps.len() - 1);
    let tail = format!("{vm}; {}  [{again}]", updates(report));
    if let Some(names) = known {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        return format!("differs {number:>4}  {steps:>3} steps  {tail}: {}", names.join(", "));
    }
    match &report.verdict {
        Verdict::Pass => format!("pass    {number:>4}  {steps:>3} steps  {tail}"),
        Verdict::Ignored(why) => format!("ignored {number:>4}  {vm}: {why}"),
        Verdict::Broken(why) => format!("BROKEN  {number:>4}  {vm}: {why}"),
        Verdict::Fail(_) => {
            let details: String = details(report).iter().map(|l| format!("\n{l}")).collect();
            format!("FAIL    {number:>4}  {steps:>3} steps  {tail}{details}")
        }
    }
}

fn updates(report: &Report) -> String {
    match report.updates {
        1 => "1 update".to_owned(),
        n => format!("{n} updates"),
    }
}

fn machine(vm: &Machine) -> String {
    let mut text = vm.guest.clone();
    if !vm.cmdline.is_empty() {
        text.push_str(&format!(" {}", vm.cmdline));
    }
    text.push_str(&format!(", {} CPU{}", vm.cpus, if vm.cpus == 1 { "" } else { "s" }));
    if vm.pages.as_str() != "4k" {
        text.push_str(&format!(", {}", vm.pages.as_str()));
    }
    if vm.serial != SerialKind::File {
        text.push_str(", serial socket");
    }
    for (is, name) in [
        (vm.paused, "paused"),
        (vm.own_binary, "own binary"),
        (vm.seccomp.is_some(), "no execve"),
        (!vm.share, "private RAM"),
    ] {
        if is {
            text.push_str(&format!(", {name}"));
        }
    }
    text
}

fn in_short(sequence: &Sequence) -> String {
    let steps: Vec<String> = sequence.steps.iter().map(of_step).collect();
    format!("{}: {}", machine(&sequence.vm), steps.join(", "))
}

/// The command that repeats this exploration.
fn command_line(explore: &Explore, seed: u64) -> String {
    let mut line = format!("cpr-harness explore --seed {seed}");
    if let Some(steps) = explore.steps {
        line.push_str(&format!(" --steps {steps}"));
    }
    if let Some(duration) = explore.duration {
        // It contains spaces.
        let duration = humantime::format_duration(duration).to_string();
        line.push_str(&format!(" --for {}", quoted(&duration)));
    }
    line + &vmm_option(&explore.vmm) + &explore.known.option()
}

fn write_json(
    path: &Path,
    seed: u64,
    coverage: &Coverage,
    failure: Option<&Ran>,
    written: Option<&Written>,
) -> Result<(), CliError> {
    let mut all = coverage.json();
    all["seed"] = seed.into();
    all["found"] = match (failure, written) {
        (Some(ran), Some(written)) => serde_json::json!({
            "sequence": ran.number,
            "seed": ran.sequence.seed,
            "findings": ran.report.verdict.findings(),
            "scenario": written.path,
            "replay": written.report.replay,
            "show": written.report.show,
        }),
        _ => serde_json::Value::Null,
    };
    std::fs::write(path, format!("{all:#}\n"))
        .map_err(|e| CliError::environment(format!("cannot write {}: {e}", path.display())))
}
