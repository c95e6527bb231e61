//! From a sequence that fails to a smaller one that fails in the same way.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::grammar::Sequence;
use super::model::Model;
use super::possible::repaired;
use super::simpler::{simpler_steps, simpler_vms};
use super::write;
use crate::scenario::{Step, Vm, parse};

/// How much may be spent on one failure.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Runs of a candidate.
    pub runs: usize,
    /// Time.
    pub time: Duration,
}

/// Looks for smaller sequences.
pub struct Shrinker<'a> {
    /// The rules for a VM.
    pub model: &'a dyn Fn(&Vm) -> Model,
    /// Runs a candidate: it fails in the same way.
    pub fails: &'a mut dyn FnMut(&Sequence) -> bool,
    /// What may be spent.
    pub budget: Budget,
}

/// What came of it.
#[derive(Debug)]
pub struct Shrunk {
    /// The smallest that failed.
    pub sequence: Sequence,
    /// How many candidates were run.
    pub runs: usize,
    /// Nothing smaller was left to try; otherwise the budget was spent.
    pub is_minimal: bool,
}

impl Shrinker<'_> {
    /// The smallest that is found.
    pub fn shrink(self, failing: Sequence) -> Shrunk {
        let until = Instant::now() + self.budget.time;
        let mut search = Search { tried: HashSet::new(), runs: 0, until, shrinker: self };
        search.tried.insert(key(&failing));
        let mut best = failing;
        loop {
            let before = best.clone();
            best = search.fewer_steps(best);
            best = search.first_that_fails(best, |best| {
                simpler_vms(&best.vm).into_iter().map(|vm| (vm, best.steps.clone())).collect()
            });
            best = search.first_that_fails(best, |best| {
                simpler_steps(&best.steps).into_iter().map(|s| (best.vm.clone(), s)).collect()
            });
            if best == before || search.is_spent() {
                let is_minimal = !search.is_spent();
                return Shrunk { sequence: best, runs: search.runs, is_minimal };
            }
        }
    }
}

struct Search<'a> {
    shrinker: Shrinker<'a>,
    tried: HashSet<String>,
    runs: usize,
    until: Instant,
}

impl Search<'_> {
    fn is_spent(&self) -> bool {
        self.runs >= self.shrinker.budget.runs || Instant::now() >= self.until
    }

    /// Delta debugging: without halves, quarters, …, single steps.
    fn fewer_steps(&mut self, mut best: Sequence) -> Sequence {
        let mut chunk = best.steps.len().div_ceil(2);
        while chunk > 0 {
            // The first step boots.
            let mut at = 1;
            while at < best.steps.len() {
                let end = (at + chunk).min(best.steps.len());
                let rest = [&best.steps[..at], &best.steps[end..]].concat();
                match self.try_out(&best, best.vm.clone(), &rest) {
                    Some(smaller) => best = smaller,
                    None => at += chunk,
                }
            }
            chunk /= 2;
        }
        best
    }

    /// Takes the first simpler one that fails, and goes on from there.
    fn first_that_fails(
        &mut self,
        mut best: Sequence,
        simpler: impl Fn(&Sequence) -> Vec<(Vm, Vec<Step>)>,
    ) -> Sequence {
        while let Some(found) =
            simpler(&best).into_iter().find_map(|(vm, steps)| self.try_out(&best, vm, &steps))
        {
            best = found;
        }
        best
    }

    /// `steps` on `vm`, made possible, if that fails.
    fn try_out(&mut self, best: &Sequence, vm: Vm, steps: &[Step]) -> Option<Sequence> {
        let model = (self.shrinker.model)(&vm);
        let kept = repaired(&model, steps.get(1..).unwrap_or_default());
        let steps = [vec![Step::Boot], kept].concat();
        let candidate = Sequence { seed: best.seed, vm, steps };
        let grows = candidate.steps.len() > best.steps.len();
        if grows || self.is_spent() || !self.tried.insert(key(&candidate)) {
            return None;
        }
        self.runs += 1;
        (self.shrinker.fails)(&candidate).then_some(candidate)
    }
}

fn key(sequence: &Sequence) -> String {
    format!("{:?} {}", sequence.vm, write::steps(&sequence.steps))
}

/// `steps` up to the one that, taken apart as for a run, holds step `number` (from 1).
pub fn up_to(steps: &[Step], number: usize) -> Vec<Step> {
    let mut seen = 0;
    let before = steps.iter().take_while(|step| {
        let goes_on = seen < number;
        seen += parse::expand(vec![(*step).clone()]).len();
        goes_on
    });
    before.cloned().collect()
}
