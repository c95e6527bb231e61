//! Running sequences until one fails, or enough was tried.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Instant;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::grammar::{Grammar, Sequence};
use crate::run::{Options, Report, Verdict, case};
use crate::scenario::write::Scenario;
use crate::scenario::{Case, ScenarioError, parse};

/// A busy host runs a long sequence slowly.
const DEADLINE_MS: u64 = 180_000;

/// What to try.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// The seed of it all.
    pub seed: u64,
    /// How many steps, over all sequences.
    pub steps: Option<usize>,
    /// No sequence begins after this.
    pub until: Option<Instant>,
    /// How many sequences at a time.
    pub jobs: usize,
}

/// One sequence that was run.
#[derive(Debug)]
pub struct Ran {
    /// Which, from 1.
    pub number: usize,
    /// What was drawn.
    pub sequence: Sequence,
    /// What it was run as.
    pub case: Case,
    /// What came of it.
    pub report: Report,
    /// It has failed as its VMM is known to: by the names of those differences from ours.
    pub known: Option<BTreeSet<String>>,
}

impl Ran {
    /// It has failed, and not as is known.
    pub fn has_failed(&self) -> bool {
        matches!(self.report.verdict, Verdict::Fail(_)) && self.known.is_none()
    }

    /// Nothing after it is of use: it has failed, or this machine does not let cases run.
    fn is_last(&self) -> bool {
        self.has_failed() || matches!(self.report.verdict, Verdict::Broken(_))
    }
}

/// By which names a failure is known, if it is.
pub type Known<'a> = &'a (dyn Fn(&Report) -> Option<BTreeSet<String>> + Sync);

/// The seed of sequence `number` (from 1) of the exploration of `seed`; the first has that seed
/// itself, so that any of them can be told, and drawn again, as the first of its own.
pub fn seed_of(seed: u64, number: usize) -> u64 {
    match number {
        0 | 1 => seed,
        number => xxh3_64_with_seed(&(number as u64).to_le_bytes(), seed) >> 1,
    }
}

/// All sequences of an extent, in their order.
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

/// The case of a sequence, by way of the text of its scenario: what is found can be written.
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

/// Runs sequences; `told` sees those that count, in their order.
///
/// The first one that fails is the last that counts, whichever was done first: what is found does
/// not depend on `jobs`.
pub fn hunt(
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

/// Removes the evidence of a case that has nothing to tell.
pub fn forget(case: &Case, options: &Options) {
    // What cannot be removed is in nobody's way.
    let _ = std::fs::remove_dir_all(options.evidence.join(case::folder_name(case)));
}
