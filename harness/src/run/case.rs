//! Runs one case.

use std::path::Path;
use std::time::{Duration, Instant};

use super::evidence::{self, Evidence};
use super::failure::StepError;
use super::host_lacks::{self, HostLacks};
use super::session::Session;
use super::verdict::{self, Report, Verdict};
use crate::backend::Feature;
use crate::check::Finding;
use crate::lab::{self, restart};
use crate::model::judge::Judge;
use crate::observe::patience::patient;
use crate::observe::qmp::QmpFault;
use crate::process::environment::EnvironmentError;
use crate::process::signals;
use crate::run::session::host_restart::Left;
use crate::run::session::soak::Pace;
use crate::run::session::steps::After;
use crate::run::update::mounts;
use crate::run::{Options, requirements};
use crate::scenario::{Case, Step};

/// The first step, which starts the VM.
const BOOT: &str = "step 1 (boot)";

/// Runs `case` on two VMMs, one after the other; on neither if either of them cannot run it here.
pub fn run_both(case: &Case, first: &Options, second: &Options) -> (Report, Report) {
    ignored_by_either(case, first, second).unwrap_or_else(|| (run(case, first), run(case, second)))
}

/// Returns the reports on a case that at least one of two VMMs cannot run here.
pub fn ignored_by_either(
    case: &Case,
    first: &Options,
    second: &Options,
) -> Option<(Report, Report)> {
    let unmet = |options: &Options| requirements::unmet(case, &*options.backend);
    let why = unmet(first).or_else(|| unmet(second))?;
    let ignored =
        |options| Report { verdict: Verdict::Ignored(why.clone()), ..blank(case, options) };
    Some((ignored(first), ignored(second)))
}

/// Reads the report that an earlier run of `case` left behind.
pub fn earlier(case: &Case, options: &Options) -> std::io::Result<Report> {
    let folder = options.evidence.join(evidence::folder_name(&case.name));
    let text = std::fs::read_to_string(folder.join(evidence::VERDICT))?;
    Ok(serde_json::from_str(&text)?)
}

/// Runs `case` and returns the report on it.
///
/// The case runs in its own thread, whose mounts are private and whose end is the end of its VM.
pub fn run(case: &Case, options: &Options) -> Report {
    run_with(case, options, Watch::default())
}

/// A step that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stepped {
    /// The step, as in [`label`].
    pub step: String,
    /// How long it took, with all checks after it.
    pub took: Duration,
    /// Whether it succeeded and every check passed.
    pub passed: bool,
}

/// Does the same as [`run`], and calls `stepped` after each step.
pub fn run_watched(case: &Case, options: &Options, stepped: &(dyn Fn(Stepped) + Sync)) -> Report {
    run_with(case, options, Watch { stepped: Some(stepped), pace: None })
}

/// Does the same as [`run`]; `pace` decides how long the soak of the case lasts.
pub fn run_at(case: &Case, options: &Options, pace: Option<&dyn Pace>) -> Report {
    run_with(case, options, Watch { stepped: None, pace })
}

/// Who watches a case.
#[derive(Clone, Copy, Default)]
struct Watch<'a> {
    stepped: Option<&'a (dyn Fn(Stepped) + Sync)>,
    pace: Option<&'a dyn Pace>,
}

impl Watch<'_> {
    /// Tells of the end of `step`, which began at `began`.
    fn tell(&self, step: &str, began: Instant, passed: bool) {
        if let Some(stepped) = self.stepped {
            stepped(Stepped { step: step.to_owned(), took: began.elapsed(), passed });
        }
    }
}

fn run_with(case: &Case, options: &Options, watch: Watch<'_>) -> Report {
    let mut report = blank(case, options);
    if let Some(why) = requirements::unmet(case, &*options.backend) {
        report.verdict = Verdict::Ignored(why);
        return report;
    }
    let began = Instant::now();
    let ran = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("case".into())
            .spawn_scoped(scope, || run_in_thread(case, options, watch, &mut report))
            .map_err(EnvironmentError::Thread)?;
        Ok(thread.join())
    });
    let ran = ran.and_then(|joined| {
        joined.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            // A failure, not `Broken`: among the cases that cannot run here it would be overlooked.
            let message = format!("panicked; this is a bug in the harness: {text}");
            fail(&mut report, "an unknown step", vec![Finding::new(verdict::HARNESS, message)]);
            // Without a verdict the folder would look like an interrupted case.
            evidence::write_verdict(&options.evidence.join(folder_name(case)), &report)
        })
    });
    if let Err(e) = ran {
        report.verdict = Verdict::Broken(e.to_string());
    }
    // One half of it may have run before the host was restarted.
    report.took = report.took.max(began.elapsed());
    report
}

/// Returns the report on a case that has not run yet.
fn blank(case: &Case, options: &Options) -> Report {
    let (program, folder) = harness_and_folder(case, options);
    let replay = format!("{program} replay {folder}{}", options.vmm_option);
    Report::of(&case.name, replay, format!("{program} show {folder}"))
}

fn run_in_thread(
    case: &Case,
    options: &Options,
    watch: Watch<'_>,
    report: &mut Report,
) -> Result<(), EnvironmentError> {
    if mounts::unmet().is_none() {
        mounts::private_mounts()?;
    }
    let left = if case.restarts_host() { Left::take(case)? } else { None };
    let evidence = match left {
        None => Evidence::create(case, options)?,
        Some(_) => Evidence::continued(case, options)?,
    };
    let (work, _guard) = signals::guarded_folder()
        .map_err(EnvironmentError::file("create a folder in", std::env::temp_dir()))?;
    let began = Instant::now();
    let took_before = left.as_ref().map_or(Duration::ZERO, |left| left.took);
    let session = match &left {
        None => Session::boot(case, options, evidence, work.path()),
        Some(left) => {
            *report = Report {
                replay: report.replay.clone(),
                show: report.show.clone(),
                ..left.report.clone()
            };
            Session::take_up(case, options, evidence, work.path(), left)
        }
    };
    let first = left
        .as_ref()
        .map_or_else(|| BOOT.to_owned(), |left| label(left.step, &case.steps[left.step]));
    let mut evidence = match session {
        Err(failed) => {
            let (evidence, error) = *failed;
            watch.tell(&first, began, false);
            fail(report, &first, error.findings()?);
            evidence
        }
        Ok(mut session) => {
            session.pace = watch.pace;
            let steps = run_steps(&mut session, report, left.as_ref(), began, watch);
            let kept = keep_or_not(&mut session, report);
            steps?;
            if kept {
                // The VM that stays up needs the socket in it.
                let path = work.keep();
                // The gateway ends with the harness.
                let socket = session.options.backend.control_socket(&session.files);
                let socket = socket.unwrap_or_else(|| session.files.qmp.clone());
                report.kept = Some((session.vm.pid(), socket));
                session.evidence.timeline.say("harness", format!("kept {}", path.display()));
            }
            note_results(&mut session, report);
            if let Some(seen) = &session.seen {
                session.evidence.observation("after", seen)?;
            }
            let Session { evidence, vm, qmp, .. } = session;
            drop((vm, qmp));
            evidence
        }
    };
    report.took = took_before + began.elapsed();
    evidence.finish(report)
}

/// Moves what the session has recorded to the report.
fn note_results(session: &mut Session<'_>, report: &mut Report) {
    report.updates = session.updates;
    report.blackouts = std::mem::take(&mut session.blackouts);
    report.phases = std::mem::take(&mut session.phases);
    report.host_seen = std::mem::take(&mut session.host_seen);
    report.failed_updates = std::mem::take(&mut session.failed_updates);
    report.refusals = std::mem::take(&mut session.refusals);
    report.kills = std::mem::take(&mut session.kills);
    report.revivals = std::mem::take(&mut session.revivals);
    report.clock_steps = session.clock_steps();
    report.memory_kib = session.memory();
}

fn run_steps(
    session: &mut Session<'_>,
    report: &mut Report,
    left: Option<&Left>,
    mut began: Instant,
    watch: Watch<'_>,
) -> Result<(), EnvironmentError> {
    let start = began;
    let steps = &session.case.steps;
    let rehearses = session.options.backend.lacks(Feature::Rehearsal).is_none();
    let mut judge = Judge::new(session.case, rehearses);
    for (index, step) in steps.iter().enumerate() {
        let label = label(index, step);
        let second_half = left.filter(|left| left.step >= index);
        if second_half.is_some_and(|left| left.step > index) {
            // The first half has compared what it showed.
            let _ = judge.follow(step, None);
            continue;
        }
        session.evidence.timeline.say("harness", &label);
        let done = match second_half {
            Some(left) => session.continue_on_new_host(left).map(|()| After::Up),
            None => session.step(step),
        };
        watch.tell(&label, began, done.is_ok());
        began = Instant::now();
        report.heard.extend(session.heard(&label, done.is_err()));
        match done {
            Ok(After::Up) => {
                let seen = session.observed(&label);
                if let Err(why) = judge.follow(step, seen.as_ref()) {
                    let finding = Finding::new(verdict::MODEL, why);
                    session.evidence.timeline.say("harness", finding.to_string());
                    fail(report, &label, vec![finding]);
                    return Ok(());
                }
                report.observed.extend(seen);
            }
            Ok(After::Gone) => return Ok(()),
            Ok(After::Left(next)) => {
                note_results(session, report);
                let before = left.map_or(Duration::ZERO, |left| left.took);
                next.leave(index, report.clone(), before + start.elapsed())?;
                // What is seen if the host does not come back.
                report.verdict = Verdict::Broken(format!("the host was restarted at {label}"));
                session.evidence.finish(report)?;
                // The lab restarts its kernel once this process has ended, and then starts it again.
                std::process::exit(0);
            }
            Err(e) => {
                let findings = explain(session, e)?;
                for finding in &findings {
                    session.evidence.timeline.say("harness", finding.to_string());
                }
                fail(report, &label, findings);
                return Ok(());
            }
        }
        if *step == Step::Boot
            && let Some(seen) = &session.seen
        {
            session.evidence.observation("boot", seen)?;
        }
        // Checked after every step: a guest that boots later, or again, reports it only then.
        let lacks = session.seen.as_ref().map(|seen| seen.mailbox.unavailable.clone());
        if let Some(what) = lacks.filter(|what| !what.is_empty()) {
            let listed = HostLacks::embedded().map_err(|e| e.to_string());
            let judged = listed.and_then(|all| all.judge(&*session.options.backend, &what));
            match judged {
                Ok(()) => {
                    report.verdict = Verdict::Ignored(format!("{}{what}", verdict::HOST_LACKS));
                }
                Err(why) => {
                    let finding = Finding::new(host_lacks::CHECK, why);
                    session.evidence.timeline.say("harness", finding.to_string());
                    fail(report, &label, vec![finding]);
                }
            }
            return Ok(());
        }
    }
    Ok(())
}

/// Returns the findings of a failed step, with everything else known about the failure.
fn explain(session: &mut Session<'_>, error: StepError) -> Result<Vec<Finding>, EnvironmentError> {
    let of_guest = matches!(error, StepError::Guest { .. });
    if matches!(error, StepError::Qmp(QmpFault::Closed { .. })) {
        // If the VMM is exiting, the kernel needs a while to complete that.
        session.vm.await_end(session.options.patience.settle);
    }
    let mut findings = error.findings()?;
    if session.watchdog_expired() {
        let limit = patient(Duration::from_millis(session.case.deadline_ms)).as_millis();
        let text = format!("the watchdog ended the case after {limit} ms");
        // Everything else failed because the watchdog killed the VMM.
        return Ok(vec![Finding::new(verdict::WATCHDOG, text)]);
    }
    // A VMM that has exited explains a broken QMP connection.
    let only_step = findings.iter().all(|f| f.check == "step");
    if only_step && let Err(StepError::Checks(more)) = session.check_process() {
        findings.extend(more);
    } else if only_step {
        findings.extend(session.look_at_guest(of_guest));
    }
    crate::run::evidence::watchdog::collect(
        session.vm.pid(),
        &session.evidence.folder.join("at-failure"),
    );
    session.evidence.keep_states(&session.work);
    if let Some(folder) = restart::kept() {
        session.evidence.keep_states(folder);
    }
    Ok(findings)
}

fn keep_or_not(session: &mut Session<'_>, report: &Report) -> bool {
    let failed = matches!(report.verdict, Verdict::Fail(_));
    let keep = session.options.keep && failed && session.vm.ended().is_none();
    if keep {
        session.vm.keep();
    }
    keep
}

fn fail(report: &mut Report, step: &str, findings: Vec<Finding>) {
    report.verdict = Verdict::Fail(findings);
    report.failed_step = Some(step.to_owned());
}

/// Returns the name of a step in the report.
pub fn label(index: usize, step: &Step) -> String {
    format!("step {} ({})", index + 1, name(step))
}

/// Returns the evidence folder of `case`, relative to that of the run.
pub fn folder_name(case: &Case) -> String {
    evidence::folder_name(&case.name)
}

/// Returns the name of a step in a scenario.
pub fn name(step: &Step) -> String {
    let name = toml::Value::try_from(step).ok();
    match name {
        Some(toml::Value::String(name)) => name,
        Some(toml::Value::Table(table)) => table.keys().next().cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

/// Returns the command that runs the harness and the evidence folder of `case`, quoted for a shell.
fn harness_and_folder(case: &Case, options: &Options) -> (String, String) {
    let folder = options.evidence.join(evidence::folder_name(&case.name));
    let program = std::env::args_os().next().unwrap_or_default();
    let program = Path::new(&program);
    // The test target cannot replay; the harness can.
    let program = match program.file_name().and_then(|n| n.to_str()) {
        Some("cpr-harness") => match lab::outside() {
            None => quoted(&program.to_string_lossy()),
            Some(lab) => format!("{} {lab}", quoted(&program.to_string_lossy())),
        },
        _ => "cargo run --release -p cpr-harness --".to_owned(),
    };
    (program, quoted(&folder.to_string_lossy()))
}

/// Quotes one word for a shell if it needs quotes.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./,=+:@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    shlex::try_quote(word).map_or_else(|_| word.to_owned(), std::borrow::Cow::into_owned)
}
