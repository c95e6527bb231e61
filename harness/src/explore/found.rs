//! Handles a sequence that fails: confirms it, shrinks it, writes it, and runs it from the file.

use std::fs;
use std::path::{Path, PathBuf};

use super::coverage::failed_step;
use super::grammar::{Grammar, Sequence};
use super::possible::is_possible;
use super::search::{Ran, case_of, forget};
use super::shrink::{Budget, Shrinker, Shrunk, up_to};
use crate::run::signature::Signature;
use crate::run::{Options, Report, case};
use crate::scenario::write::Scenario;
use crate::scenario::{ScenarioError, Step, Vm, parse};

/// Total number of runs of a failed sequence before it is shrunk.
const CONFIRMATIONS: usize = 3;

/// The folder for scenarios that are written.
pub const THEME: &str = "found";

/// A sequence that fails, and how reliably.
pub struct Confirmed {
    /// The sequence up to the step that failed.
    pub sequence: Sequence,
    /// How it fails.
    pub signature: Signature,
    /// How often it failed this way.
    pub failed: usize,
    /// How often it was run.
    pub runs: usize,
}

impl Confirmed {
    /// Whether it failed every time.
    pub fn is_certain(&self) -> bool {
        self.failed == self.runs
    }
}

/// Runs a failed sequence again.
pub fn confirm(ran: &Ran, options: &Options) -> Option<Confirmed> {
    let signature = Signature::of_report(&ran.report)?;
    let number = failed_step(&ran.report).unwrap_or(ran.case.steps.len());
    let steps = up_to(&ran.sequence.steps, number);
    let sequence = Sequence { steps, ..ran.sequence.clone() };
    let mut failed = 1;
    for _ in 1..CONFIRMATIONS {
        failed += usize::from(fails(&sequence, &signature, options));
    }
    Some(Confirmed { sequence, signature, failed, runs: CONFIRMATIONS })
}

fn fails(sequence: &Sequence, signature: &Signature, options: &Options) -> bool {
    let Ok(case) = case_of(&format!("explore/{}-smaller", sequence.seed), sequence) else {
        return false;
    };
    let report = case::run(&case, options);
    forget(&case, options);
    signature.is_in(&report)
}

/// Shrinks a failing sequence; `step` is called with each candidate and whether it failed.
pub fn shrink(
    confirmed: &Confirmed,
    grammar: &Grammar,
    options: &Options,
    budget: Budget,
    mut step: impl FnMut(&Sequence, bool),
) -> Shrunk {
    let model = |vm: &Vm| grammar.model(vm);
    let mut oracle = |candidate: &Sequence| {
        let failed = fails(candidate, &confirmed.signature, options);
        step(candidate, failed);
        failed
    };
    Shrinker { model: &model, fails: &mut oracle, budget }.shrink(confirmed.sequence.clone())
}

/// Why a scenario could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file or its folder could not be written.
    #[error("cannot write {path}: {source}")]
    File {
        /// Its path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The written file is invalid.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
}

/// A scenario that was written and run.
pub struct Written {
    /// Its file.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// The report of running it from the file.
    pub report: Report,
}

/// Writes `sequence` to `folder` and runs it from there. Appends `quit` to a sequence that leaves
/// the VMM running, for when the bug is fixed.
pub fn write(
    sequence: &Sequence,
    signature: &Signature,
    grammar: &Grammar,
    command: &str,
    folder: &Path,
    options: &Options,
) -> Result<Written, WriteError> {
    let mut steps = sequence.steps.clone();
    let model = grammar.model(&sequence.vm);
    let last = steps.iter().fold(model.boot(), |state, step| model.after(&state, step));
    if is_possible(&model, &last, &Step::Quit) {
        steps.push(Step::Quit);
    }
    let label = label(&steps);
    let text = Scenario {
        comment: &format!("Found by `{command}`."),
        summary: &format!("found by explore: {} (check `{}`)", label.join(", "), signature.check),
        vm: &sequence.vm,
        steps: &steps,
        seed: sequence.seed,
        deadline_ms: None,
    }
    .text();
    let error = |path: &Path| {
        let path = path.to_owned();
        |source| WriteError::File { path, source }
    };
    fs::create_dir_all(folder).map_err(error(folder))?;
    let path = free_path(folder, &slug(&label), &text);
    fs::write(&path, &text).map_err(error(&path))?;
    let written = fs::read_to_string(&path).map_err(error(&path))?;
    let name = crate::scenario::set::name(&path);
    let mut cases = parse::parse(&path.display().to_string(), &name, &written)?;
    let case = cases.pop().ok_or_else(|| ScenarioError::sense(&name, "no case"))?;
    Ok(Written { report: case::run(&case, options), path, text })
}

/// The names of the steps, without `boot` and `quit`.
fn label(steps: &[Step]) -> Vec<String> {
    let wanted = steps.iter().filter(|step| !matches!(step, Step::Boot | Step::Quit));
    wanted.map(case::name).collect()
}

fn slug(label: &[String]) -> String {
    let short = label.iter().take(5).map(String::as_str);
    let slug = short.collect::<Vec<_>>().join("-");
    if slug.is_empty() { "boot".to_owned() } else { slug }
}

/// A path in `folder` that is free, or already has this text.
fn free_path(folder: &Path, slug: &str, text: &str) -> PathBuf {
    let name = |n: usize| match n {
        1 => folder.join(format!("{slug}.toml")),
        n => folder.join(format!("{slug}-{n}.toml")),
    };
    let is_free = |path: &PathBuf| match fs::read_to_string(path) {
        Ok(there) => there == text,
        Err(_) => !path.exists(),
    };
    (1..).map(name).find(is_free).unwrap_or_else(|| name(1))
}
