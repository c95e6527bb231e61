//! Runs cases for `run` and `replay`, prints what happens, and ends as the user asks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::again::{self, Again};
use super::report::{Files, summarize_for_github};
use super::{CliError, complain, exit_status};
use crate::conform::differences::Differences;
use crate::process::signals;
use crate::report::errors::Errors;
use crate::report::github;
use crate::report::last_run::LastRun;
use crate::report::progress::Progress;
use crate::report::record::Record;
use crate::report::stdout::say;
use crate::report::terminal::Terminal;
use crate::report::tested;
use crate::run::case::quoted;
use crate::run::evidence::folder_name;
use crate::run::rounds::{Rounds, without_round};
use crate::run::watched::{Event, Events};
use crate::run::{Options, Report, Verdict};
use crate::scenario::Case;

/// Why a run ends that was to find a failure.
const UNTIL_FAIL: &str = "--until-fail";

/// Result of a run.
pub(super) struct Ran {
    /// The record of the run.
    pub(super) record: Record,
    /// Exit status of the harness.
    pub(super) code: ExitCode,
}

/// How cases are run, and what is printed of them.
#[derive(Clone, Copy, Default)]
pub(super) struct How {
    /// Cases at a time.
    pub(super) jobs: usize,
    /// How often each case is run; 0 is once, too.
    pub(super) rounds: usize,
    /// A case that cannot run here is an error.
    pub(super) require_all: bool,
    /// Whether no case begins after one that failed.
    pub(super) fail_fast: bool,
    /// The same, and whether the evidence of repeats that pass is removed.
    pub(super) until_fail: bool,
    /// Whether only failures are printed.
    pub(super) quiet: bool,
    /// Whether each step is printed.
    pub(super) verbose: bool,
    /// How many of the longest cases are listed.
    pub(super) slowest: usize,
}

/// What `run` writes beside evidence, and what it knows of earlier runs.
#[derive(Default)]
pub(super) struct Around<'a> {
    /// The table of errors.
    pub(super) errors: Option<Errors>,
    /// The report files.
    pub(super) files: Option<&'a Files>,
    /// The files and folders of the scenarios, unless they are embedded.
    pub(super) scenarios: Option<&'a [PathBuf]>,
    /// The state of the run, which another run can continue.
    pub(super) last_run: Option<LastRun>,
    /// How long cases took in an earlier run.
    pub(super) durations: BTreeMap<String, Duration>,
}

/// Runs these cases, prints their reports and writes the report files.
pub(super) fn run_cases(
    cases: &[Case],
    how: How,
    options: &Options,
    events: &Events,
    around: Around<'_>,
    differences: Differences,
) -> Result<Ran, CliError> {
    let rounds = Rounds { cases, count: how.rounds.max(1) };
    let width = cases.iter().map(|case| case.name.len()).max().unwrap_or(0);
    let mut terminal = Terminal::new(rounds.total(), width);
    let names = cases.iter().map(|case| case.name.as_str());
    terminal.watch(Progress::new(names, rounds.count, how.jobs, around.durations.clone()));
    let mut running = Running {
        rounds,
        how,
        options,
        around,
        terminal,
        differences,
        record: Record::new(tested::Run::now(options, how.jobs)),
        began: Instant::now(),
        begun: 0,
        took: Vec::new(),
        stopped: None,
    };
    running.write_state().map_err(CliError::environment)?;
    events.run(rounds, how.jobs, options, |event| running.on(event));
    Ok(running.finish())
}

/// A run in progress.
struct Running<'a> {
    rounds: Rounds<'a>,
    how: How,
    options: &'a Options,
    around: Around<'a>,
    terminal: Terminal,
    differences: Differences,
    record: Record,
    began: Instant,
    /// Number of cases that have begun.
    begun: usize,
    /// The cases that have ended, and how long they took.
    took: Vec<(Duration, String)>,
    /// Why no further case begins.
    stopped: Option<&'static str>,
}

impl Running<'_> {
    fn on(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::Began(case) => {
                self.begun += 1;
                self.terminal.began(&case);
            }
            Event::Stepped(case, step) if self.how.verbose => self.terminal.step(&case, &step),
            Event::Stepped(..) => {}
            Event::Idle => self.terminal.refresh(),
            Event::Interrupted(signal) => self.interrupted(signal),
            Event::Done(report) => return self.done(*report),
        }
        ControlFlow::Continue(())
    }

    /// Counts, records and prints a case that ended.
    fn done(&mut self, report: Report) -> ControlFlow<()> {
        let How { require_all, fail_fast, until_fail, quiet, .. } = self.how;
        let known = self.differences.of_failure(self.options.backend.name(), &report);
        let name = self.name(&report.case);
        if until_fail && name != report.case && report.verdict == Verdict::Pass {
            // What cannot be removed stays.
            let _ = again::remove(&self.options.evidence.join(folder_name(&report.case)));
        }
        if let Some(case) = self.rounds.cases.iter().find(|case| case.name == name) {
            if let Some(errors) = &mut self.around.errors {
                errors.case(case, &report);
            }
            let case = Case { name: report.case.clone(), ..case.clone() };
            self.record.add(&case, &report, &known, &self.options.evidence);
        }
        self.took.push((report.took, report.case.clone()));
        let failed = known.is_none() && matches!(report.verdict, Verdict::Fail(_));
        let missed = require_all && report.verdict.miss().is_some();
        let broken = matches!(report.verdict, Verdict::Broken(_));
        if let Some(last) = &mut self.around.last_run {
            last.ended(name, failed || broken);
        }
        // At the end of the run, a failure of this is reported.
        let _ = self.write_state();
        let shown = !quiet || failed || missed || broken || report.kept.is_some();
        match known {
            Some(names) if shown => self.terminal.known(&report, names),
            Some(names) => self.terminal.count_known(&report, names),
            None if shown => self.terminal.case(report),
            None => self.terminal.count(report),
        }
        self.stopped = self.stopped.or(match failed {
            true if until_fail => Some(UNTIL_FAIL),
            true if fail_fast => Some("--fail-fast"),
            _ => self.none_can_run().then_some("all were ignored"),
        });
        match self.stopped {
            Some(_) => ControlFlow::Break(()),
            None => ControlFlow::Continue(()),
        }
    }

    /// True if every case ended at least once, but was ignored: so it will be in each round.
    fn none_can_run(&self) -> bool {
        let names = || self.took.iter().map(|(_, case)| self.name(case)).collect::<BTreeSet<_>>();
        self.terminal.all_ignored() && names().len() == self.rounds.cases.len()
    }

    /// Returns the name of the case that ran as `name`, which may end with its round. So may the name
    /// of a case itself: that of a replayed round.
    fn name<'b>(&self, name: &'b str) -> &'b str {
        match self.rounds.count > 1 && !self.rounds.cases.iter().any(|case| case.name == name) {
            true => without_round(name),
            false => name,
        }
    }

    fn write_state(&self) -> Result<(), String> {
        let Some(last) = &self.around.last_run else { return Ok(()) };
        let evidence = &self.options.evidence;
        last.write(evidence).map_err(|e| {
            format!("cannot write the state of the run to {}: {e}", evidence.display())
        })
    }

    /// Prints the summary, and completes the record.
    fn summarize(&mut self) {
        let took = self.began.elapsed();
        self.record.runs.iter_mut().for_each(|run| run.end(took));
        let ended: BTreeSet<&str> = self.took.iter().map(|(_, case)| self.name(case)).collect();
        let names = self.rounds.cases.iter().map(|case| &case.name);
        let not_run = names.filter(|name| !ended.contains(name.as_str())).cloned().collect();
        self.record.not_run = not_run;
        self.terminal.not_run(self.record.not_run.len());
        self.terminal.finish(took);
        self.took.sort_by_key(|(took, _)| Reverse(*took));
        for (took, case) in self.took.iter().take(self.how.slowest) {
            say(format_args!("{:>8.2} s  {case}", took.as_secs_f64()));
        }
    }

    /// Ends the run after its last case.
    fn finish(mut self) -> Ran {
        self.summarize();
        let mut wrong = Vec::new();
        let (told, same) = match self.around.errors.take().map(|errors| errors.finish()) {
            None => (Vec::new(), true),
            Some(Ok(finished)) => finished,
            Some(Err(e)) => {
                wrong.push(format!("cannot write the table of errors: {e}"));
                (Vec::new(), true)
            }
        };
        told.iter().for_each(say);
        let not_begun = self.rounds.total() - self.begun;
        if let Some(why) = self.stopped.filter(|_| not_begun > 0) {
            say(format_args!("{} not begun ({why})", were(not_begun)));
        }
        self.print_next_commands();
        wrong.extend(self.write_all());
        let code = exit_status::of(&self.terminal, same, self.how.require_all);
        Ran { record: self.record, code: exit_status::despite(&wrong, code) }
    }

    /// Writes the state of the run and all reports; returns why some could not be written.
    fn write_all(&self) -> Vec<String> {
        let mut wrong: Vec<String> = self.write_state().err().into_iter().collect();
        if let Some(files) = self.around.files {
            wrong.extend(files.write(&self.record));
            github::annotate(&self.record, self.around.scenarios);
            wrong.extend(summarize_for_github(&self.record));
        }
        wrong
    }

    /// Prints the commands that run what failed, or what has not run.
    fn print_next_commands(&self) {
        let Some(last) = &self.around.last_run else { return };
        if !last.failed.is_empty() {
            say(format_args!("run what failed again: {}", again::command(Again::Failed)));
        }
        // A run that was to find a failure has found it.
        if !last.not_run.is_empty() && self.stopped != Some(UNTIL_FAIL) {
            say(format_args!("continue: {}", again::command(Again::NotRun)));
            let evidence = self.options.evidence.to_string_lossy();
            say(format_args!("merge the results: cpr-harness report merge {}", quoted(&evidence)));
        }
    }

    /// Ends the run and this process at a signal: with reports of what has run. The cases that run
    /// are stopped and leave evidence without a verdict.
    fn interrupted(&mut self, signal: Signal) -> ! {
        self.summarize();
        let why = match signal {
            Signal::SIGPIPE => "standard output was closed".to_owned(),
            signal => format!("interrupted by {signal}"),
        };
        let (total, ended) = (self.rounds.total(), self.took.len());
        let (stopped, not_begun) = (self.begun - ended, total - self.begun);
        let mut line = format!("{why}: {ended} of {total} cases ran, {stopped} stopped");
        if not_begun > 0 {
            line.push_str(&format!(", {} not begun", were(not_begun)));
        }
        say(line);
        self.print_next_commands();
        self.write_all().iter().for_each(|why| complain(why));
        signals::end(signal)
    }
}

fn were(count: usize) -> String {
    if count == 1 { "1 case was".to_owned() } else { format!("{count} cases were") }
}
