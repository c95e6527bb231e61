//! Shrinks a sequence that fails to a smaller one that fails in the same way.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::grammar::Sequence;
use super::possible::keep_possible;
use super::simpler::{cost, simpler_steps, simpler_vms};
use crate::model::reference::Model;
use crate::scenario::{Step, Vm, expansion, write};

/// How much may be spent on one failure.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// The most runs of candidates.
    pub runs: usize,
    /// The most time.
    pub time: Duration,
}

/// Looks for smaller sequences.
pub struct Shrinker<'a> {
    /// Returns the model of a VM.
    pub model: &'a dyn Fn(&Vm) -> Model,
    /// Runs a candidate and returns whether it fails in the same way.
    pub fails: &'a mut dyn FnMut(&Sequence) -> bool,
    /// The budget.
    pub budget: Budget,
}

/// The result of shrinking.
#[derive(Debug)]
pub struct Shrunk {
    /// The smallest sequence that failed.
    pub sequence: Sequence,
    /// How many candidates were run.
    pub runs: usize,
    /// Whether nothing smaller was left to try; otherwise the budget was spent.
    pub is_minimal: bool,
}

impl Shrinker<'_> {
    /// Returns the smallest failing sequence that it finds.
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

    /// Delta debugging: leaves out halves, quarters, …, single steps.
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

    /// Takes the first simpler sequence that fails, and continues from there.
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

    /// Repairs and runs `steps` on `vm`; returns the sequence if it fails.
    fn try_out(&mut self, best: &Sequence, vm: Vm, steps: &[Step]) -> Option<Sequence> {
        let model = (self.shrinker.model)(&vm);
        let kept = keep_possible(&model, steps.get(1..).unwrap_or_default());
        let steps = [vec![Step::Boot], kept].concat();
        let candidate = Sequence { seed: best.seed, vm, steps };
        let grows = cost(&candidate.steps) > cost(&best.steps);
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

/// Returns `steps` up to the one that contains step `number` (from 1) once expanded for a run.
pub fn up_to(steps: &[Step], number: usize) -> Vec<Step> {
    let mut seen = 0;
    let before = steps.iter().take_while(|step| {
        let goes_on = seen < number;
        seen += expansion::expand(vec![(*step).clone()]).len();
        goes_on
    });
    before.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::super::full_backend::FullBackend;
    use super::super::grammar::Grammar;
    use super::super::possible::is_good;
    use super::*;
    use crate::model::reference::Run;

    /// Models a VMM with a bug: an update resumes a stopped guest.
    fn resumes(grammar: &Grammar, sequence: &Sequence) -> bool {
        let model = grammar.model(&sequence.vm);
        let mut state = model.boot();
        expansion::expand(sequence.steps.clone()).iter().any(|step| {
            let stopped = state.run == Run::Paused;
            let meets = state.armed.is_none() && stopped;
            state = model.after(&state, step);
            meets && matches!(step, Step::Migrate(migrate) if is_good(migrate))
        })
    }

    fn shrunk(grammar: &Grammar, failing: Sequence, runs: usize) -> Shrunk {
        let budget = Budget { runs, time: Duration::from_secs(600) };
        let model = |vm: &Vm| grammar.model(vm);
        let mut fails = |candidate: &Sequence| resumes(grammar, candidate);
        Shrinker { model: &model, fails: &mut fails, budget }.shrink(failing)
    }

    #[test]
    fn every_failure_of_one_bug_shrinks_to_the_same_three_steps() {
        let grammar = Grammar::new(&FullBackend);
        let drawn = (0..120).map(|seed| grammar.draw(seed, 20));
        let failing: Vec<Sequence> = drawn.filter(|s| resumes(&grammar, s)).collect();
        assert!(failing.len() > 10, "{}", failing.len());
        for sequence in failing {
            let shrunk = shrunk(&grammar, sequence.clone(), 500);
            assert!(shrunk.is_minimal, "{sequence:?}");
            assert!(shrunk.runs < 100, "{} runs for {sequence:?}", shrunk.runs);
            let steps = [Step::Boot, Step::Stop, Step::Migrate(Default::default())];
            assert_eq!(shrunk.sequence.steps, steps, "{sequence:?}");
            assert_eq!(shrunk.sequence.vm, Vm::default());
        }
    }

    #[test]
    fn keeps_to_the_budget_of_runs() {
        let grammar = Grammar::new(&FullBackend);
        let failing = (0..).map(|seed| grammar.draw(seed, 20));
        let failing = failing.into_iter().find(|s| resumes(&grammar, s) && s.steps.len() > 8);
        let shrunk = shrunk(&grammar, failing.unwrap(), 2);
        assert!(!shrunk.is_minimal);
        assert_eq!(shrunk.runs, 2);
    }

    #[test]
    fn steps_are_cut_after_the_one_that_failed() {
        let faults = Step::Faults("save".to_owned());
        let many = expansion::expand(vec![faults.clone()]).len();
        let steps = [Step::Boot, Step::Stop, faults, Step::Cont, Step::Quit];
        assert_eq!(up_to(&steps, 2), steps[..2]);
        assert_eq!(up_to(&steps, 3), steps[..3]);
        assert_eq!(up_to(&steps, 2 + many), steps[..3]);
        assert_eq!(up_to(&steps, 3 + many), steps[..4]);
    }
}
