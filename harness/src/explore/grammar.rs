//! Draws sequences: a VM, a swarm of kinds of steps, and steps that the model allows.

use fastrand::Rng;

use super::kind::StepKind;
use super::possible::completed;
use super::vocabulary::{Vocabulary, Word, vms};
use crate::backend::Backend;
use crate::model::reference::{Model, Run};
use crate::scenario::{Pages, Seccomp, SerialAction, SerialKind, Step, Vm};

/// Lengths of a sequence, without `boot`.
const LENGTH: std::ops::RangeInclusive<usize> = 4..=14;

/// A VM and its steps, drawn from one seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// The seed, also of the case.
    pub seed: u64,
    /// The VM.
    pub vm: Vm,
    /// All steps, as in a scenario file; the first is `boot`.
    pub steps: Vec<Step>,
}

/// What sequences are drawn from.
pub struct Grammar {
    vocabulary: Vocabulary,
    vms: Vec<(u32, Vm)>,
    variants: Variants,
}

/// Which variants of a VM this host and VMM support.
#[derive(Clone, Copy)]
struct Variants {
    huge_pages: bool,
    own_binary: bool,
    no_execve: bool,
    serial_socket: bool,
}

impl Grammar {
    /// Creates the grammar for `backend` on this host.
    pub fn new(backend: &dyn Backend) -> Self {
        let has = |vm: Vm| Vocabulary::unmet(backend, &vm).is_none();
        let vm = Vm::default();
        let fake = backend.name() == "mock";
        let variants = Variants {
            huge_pages: has(Vm { pages: Pages::Transparent, ..vm.clone() }) && !fake,
            own_binary: has(Vm { own_binary: true, ..vm.clone() }) && !fake,
            no_execve: has(Vm { seccomp: Some(Seccomp::NoExecve), ..vm.clone() }) && !fake,
            serial_socket: !fake,
        };
        Self { vocabulary: Vocabulary::of(backend), vms: vms(backend), variants }
    }

    /// The available steps.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// The available VMs.
    pub fn vms(&self) -> impl Iterator<Item = &Vm> {
        self.vms.iter().map(|(_, vm)| vm)
    }

    /// Returns the model of `vm`.
    pub fn model(&self, vm: &Vm) -> Model {
        Model::new(vm, self.vocabulary.rehearses)
    }

    /// Draws the sequence of `seed`, with at most `limit` steps besides `boot`; the first steps do
    /// not depend on the limit.
    pub fn draw(&self, seed: u64, limit: usize) -> Sequence {
        let mut rng = Rng::with_seed(seed);
        let vm = self.vm(&mut rng);
        let swarm = Swarm::draw(&mut rng);
        let length = rng.usize(LENGTH).min(limit).max(1);
        let model = self.model(&vm);
        let mut state = model.boot();
        let mut steps = vec![Step::Boot];
        // Without a client it would have little effect.
        let connect = Step::Serial(SerialAction::Connect);
        let can = self.vocabulary.words.iter().any(|word| word.steps.first() == Some(&connect));
        if model.guest.talks && rng.bool() && can && length > 1 {
            state = model.after(&state, &connect);
            steps.push(connect);
        }
        while steps.len() < length {
            let fitting = self.vocabulary.fitting(&model, &state);
            let Some(word) = swarm.choose(&mut rng, &fitting) else { break };
            for step in &word.steps {
                let step = completed(&model, &state, step);
                state = model.after(&state, &step);
                steps.push(step);
            }
        }
        if state.run != Run::Gone {
            steps.push(self.ending(&mut rng, &model, &state));
        }
        Sequence { seed, vm, steps }
    }

    /// Draws the last step: `quit`, or now and then something rarer.
    fn ending(&self, rng: &mut Rng, model: &Model, state: &crate::model::reference::State) -> Step {
        let endings = &self.vocabulary.endings;
        let fitting: Vec<&Word> =
            endings.iter().filter(|word| self.vocabulary.fits(model, state, word)).collect();
        let rare = rng.u32(0..3) == 0;
        let word = if rare { rng.choice(fitting) } else { None };
        word.and_then(|word| word.steps.first().cloned()).unwrap_or(Step::Quit)
    }

    fn vm(&self, rng: &mut Rng) -> Vm {
        let weights: Vec<u32> = self.vms.iter().map(|(weight, _)| *weight).collect();
        let mut vm = weighted(rng, &weights).map_or_else(Vm::default, |n| self.vms[n].1.clone());
        vm.cpus = [1, 1, 1, 2, 2, 2, 2, 4][rng.usize(0..8)];
        if rng.u32(0..8) == 0 {
            vm.memory = "128M".parse().unwrap_or_default();
        }
        let Variants { huge_pages, own_binary, no_execve, serial_socket } = self.variants;
        let mut one_in = |n: u32| rng.u32(0..n) == 0;
        let plain = vm.cmdline.is_empty() && vm.serial == SerialKind::File;
        // Drawn even if unsupported, so that what follows is the same on another host.
        let (huge, socket, paused) = (one_in(4), one_in(5), one_in(6));
        let (own, filtered, private) = (one_in(10), one_in(40), one_in(40));
        if huge && huge_pages {
            vm.pages = Pages::Transparent;
        }
        if socket && serial_socket && vm.guest != "serial" {
            vm.serial = SerialKind::Unix;
        }
        vm.paused = paused && plain;
        vm.own_binary = own && own_binary;
        if filtered && no_execve && !vm.own_binary {
            vm.seccomp = Some(Seccomp::NoExecve);
        }
        if private && vm.seccomp.is_none() && vm.pages == Pages::Small {
            vm.share = false;
        }
        vm
    }
}

/// The weights of the kinds in one sequence: some are switched off, some more frequent.
struct Swarm {
    weights: Vec<(StepKind, u32)>,
}

impl Swarm {
    fn draw(rng: &mut Rng) -> Self {
        let factor = |rng: &mut Rng| match rng.u32(0..8) {
            0 | 1 => 0,
            2 | 3 => 4,
            _ => 1,
        };
        let weigh = |kind: StepKind| {
            let factor = match (factor(rng), kind) {
                // Never switched off.
                (0, StepKind::GoodUpdate | StepKind::Cont | StepKind::Limit) => 1,
                (factor, _) => factor,
            };
            (kind, kind.weight() * factor)
        };
        Self { weights: StepKind::ALL.map(weigh).into() }
    }

    /// Chooses a kind by its weight, then any of its words.
    fn choose<'a>(&self, rng: &mut Rng, words: &[&'a Word]) -> Option<&'a Word> {
        let there = |kind| words.iter().any(|word| word.kind == kind);
        let kinds: Vec<(StepKind, u32)> =
            self.weights.iter().filter(|(kind, _)| there(*kind)).copied().collect();
        let weights: Vec<u32> = kinds.iter().map(|(_, weight)| *weight).collect();
        let kind = kinds[weighted(rng, &weights)?].0;
        let words: Vec<&&Word> = words.iter().filter(|word| word.kind == kind).collect();
        rng.choice(words).copied()
    }
}

/// Draws an index with a probability proportional to its weight.
fn weighted(rng: &mut Rng, weights: &[u32]) -> Option<usize> {
    let total: u32 = weights.iter().sum();
    let mut drawn = (total > 0).then(|| rng.u32(0..total))?;
    weights.iter().position(|&weight| match drawn.checked_sub(weight) {
        Some(rest) => {
            drawn = rest;
            false
        }
        None => true,
    })
}

#[cfg(test)]
mod tests {
    use super::super::full_backend::FullBackend;
    use super::super::possible::keep_possible;
    use super::super::search::{Extent, case_of, sequences};
    use super::*;
    use crate::backend::mock::Mock;
    use crate::scenario::expansion;

    #[test]
    fn drawn_sequences_are_valid_scenarios_that_follow_the_model() {
        for grammar in [Grammar::new(&FullBackend), Grammar::new(&Mock::carried(None).unwrap())] {
            for seed in 0..500 {
                let sequence = grammar.draw(seed, 20);
                let case = case_of("a/b", &sequence).unwrap();
                assert_eq!((&case.vm, case.seed), (&sequence.vm, seed));
                assert_eq!(case.steps, expansion::expand(sequence.steps.clone()), "seed {seed}");
                let model = grammar.model(&sequence.vm);
                let rest = &sequence.steps[1..];
                assert_eq!(keep_possible(&model, rest), rest, "seed {seed}");
                assert!(sequence.steps.last().is_some_and(|last| {
                    let ended =
                        case.steps.iter().fold(model.boot(), |s, step| model.after(&s, step));
                    ended.run == Run::Gone || *last == Step::Quit
                }));
            }
        }
    }

    #[test]
    fn every_word_is_drawn_sooner_or_later() {
        let grammar = Grammar::new(&FullBackend);
        let drawn: Vec<Step> = (0..2500).flat_map(|seed| grammar.draw(seed, 20).steps).collect();
        for kind in StepKind::ALL {
            let words: Vec<&Word> =
                grammar.vocabulary.words.iter().filter(|w| w.kind == kind).collect();
            let seen = words.iter().filter(|word| {
                let first = word.steps.first();
                drawn.iter().any(|step| match (step, first) {
                    (Step::Migrate(drawn), Some(Step::Migrate(word))) => {
                        drawn.command == word.command && drawn.channel == word.channel
                    }
                    (step, first) => Some(step) == first,
                })
            });
            let seen = seen.count();
            // A few of a kind's hundreds of words may be missed.
            let enough = words.len() * 7 / 10;
            assert!(seen >= enough, "{kind}: {seen} of {}, not {enough}", words.len());
        }
    }

    #[test]
    fn a_seed_determines_the_exploration_and_each_sequence_can_be_drawn_alone() {
        let grammar = Grammar::new(&FullBackend);
        let extent = |seed, steps| Extent { seed, steps: Some(steps), until: None, jobs: 1 };
        let all: Vec<_> = sequences(&grammar, extent(7, 300)).collect();
        assert_eq!(all, sequences(&grammar, extent(7, 300)).collect::<Vec<_>>());
        assert_ne!(all, sequences(&grammar, extent(8, 300)).collect::<Vec<_>>());
        for (_, sequence) in &all {
            let steps = sequence.steps.len() - 1;
            let alone = sequences(&grammar, extent(sequence.seed, steps)).next();
            assert_eq!(alone, Some((1, sequence.clone())));
        }
        let steps: usize = all.iter().map(|(_, sequence)| sequence.steps.len() - 1).sum();
        assert!((300..320).contains(&steps), "{steps}");
    }
}
