//! Runs sequences until one fails or a limit is reached.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Instant;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::grammar::{Grammar, Sequence};
use crate::run::{Options, Report, Verdict, case};
use crate::scenario::write::Scenario;
use crate::scenario::{Case, ScenarioError, parse};

/// Deadline of a sequence in milliseconds; generous, as a busy host runs long sequences slowly.
const DEADLINE_MS: u64 = 180_000;

/// How much to try.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The seed of the exploration.
    pub seed: u64,
    /// The most steps, over all sequences.
    pub steps: Option<usize>,
    /// The time after which no sequence begins.
    pub until: Option<Instant>,
    /// How many sequences run at a time.
    pub jobs: usize,
}

/// A sequence that was run.
#[derive(Debug)]
pub struct Ran {
    /// Its number, from 1.
    pub number: usize,
    /// The drawn sequence.
    pub sequence: Sequence,
    /// The case as which it was run.
    pub case: Case,
    /// The report of the run.
    pub report: Report,
    /// The names of the known differences between its VMM and ours that explain its failure, if
    /// they do.
    pub known: Option<BTreeSet<String>>,
}

impl Ran {
    /// Whether it failed, and not by a known difference.
    pub fn has_failed(&self) -> bool {
        matches!(self.report.verdict, Verdict::Fail(_)) && self.known.is_none()
    }

    /// Whether the hunt ends with it: it failed, or this machine cannot run cases.
    fn is_last(&self) -> bool {
        self.has_failed() || matches!(self.report.verdict, Verdict::Broken(_))
    }
}

/// Returns the names of the known differences that explain a failure, if they do.
pub type Known<'a> = &'a (dyn Fn(&Report) -> Option<BTreeSet<String>> + Sync);

/// Returns the seed of sequence `number` (from 1) of the exploration of `seed`. The first has that
/// seed itself, so that any sequence can be drawn again as the first one of its own seed.
pub fn seed_of(seed: u64, number: usize) -> u64 {
    match number {
        0 | 1 => seed,
        number => xxh3_64_with_seed(&(number as u64).to_le_bytes(), seed) >> 1,
    }
}

/// Draws all sequences of an extent, in order.
pub fn sequences(grammar: &Grammar, extent: Extent) -> impl Iterator<Item = (usize, Sequence)> {
    let mut left = extent.steps.unwrap_or(usize::MAX);
    (1..).map_while(move |number| {
        if left == 0 {
            return None;
        }
        let sequence = grammar.draw(seed_of(extent.seed, number), left);
        left = left.saturating_sub(sequence.steps.len() - 1);
        Some((number, sequence))
    })
}

/// Makes the case of a sequence by way of its scenario text, so that whatever is found can be
/// written.
pub fn case_of(name: &str, sequence: &Sequence) -> Result<Case, ScenarioError> {
    let scenario = Scenario {
        comment: "",
        summary: "drawn by explore",
        vm: &sequence.vm,
        steps: &sequence.steps,
        seed: sequence.seed,
        deadline_ms: Some(DEADLINE_MS),
    };
    let text = scenario.text();
    let mut cases = parse::parse(&format!("({name})"), name, &text)?;
    cases.pop().ok_or_else(|| ScenarioError::sense(name, "no case"))
}

/// Runs sequences; `told` is called with those that count, in order.
///
/// The first sequence that fails is the last that counts, no matter which finished first: the
/// result does not depend on `jobs`.
pub fn search(
    grammar: &Grammar,
    extent: Extent,
    options: &Options,
    known: Known<'_>,
    mut told: impl FnMut(&Ran),
) -> Result<Option<Ran>, ScenarioError> {
    let drawn = Mutex::new(sequences(grammar, extent));
    let first_failure = AtomicUsize::new(usize::MAX);
    let (sender, arriving) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..extent.jobs.max(1) {
            let (sender, drawn, first_failure) = (sender.clone(), &drawn, &first_failure);
            scope.spawn(move || {
                loop {
                    if extent.until.is_some_and(|until| Instant::now() >= until) {
                        return;
                    }
                    let next = drawn.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((number, sequence)) = next else { return };
                    if number > first_failure.load(Ordering::SeqCst) {
                        return;
                    }
                    let ran = run(number, sequence, options, known);
                    if ran.as_ref().map_or(true, Ran::is_last) {
                        first_failure.fetch_min(number, Ordering::SeqCst);
                    }
                    if sender.send((number, ran)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut waiting = BTreeMap::new();
        let mut next = 1;
        for (number, ran) in arriving {
            waiting.insert(number, ran);
            while let Some(ran) = waiting.remove(&next) {
                let ran = ran?;
                told(&ran);
                if ran.is_last() {
                    return Ok(ran.has_failed().then_some(ran));
                }
                next += 1;
            }
        }
        Ok(None)
    })
}

fn run(
    number: usize,
    sequence: Sequence,
    options: &Options,
    known: Known<'_>,
) -> Result<Ran, ScenarioError> {
    let case = case_of(&format!("explore/{}", sequence.seed), &sequence)?;
    let report = case::run(&case, options);
    let known = known(&report);
    let ran = Ran { number, sequence, case, report, known };
    if !ran.has_failed() {
        forget(&ran.case, options);
    }
    Ok(ran)
}

/// Removes the evidence of a case that is not needed.
pub fn forget(case: &Case, options: &Options) {
    // Leftover evidence does no harm.
    let _ = std::fs::remove_dir_all(options.evidence.join(case::folder_name(case)));
}
