//! A model of the commit point: every interleaving of a VMM's process that may die at any point,
//! its keeper, and the new binary's keeper, or the process that the guest is offered to. In each,
//! exactly one process runs the guest.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32};
use loom::thread;
use rstest::rstest;

use super::commit::{Claim, UNDECIDED, Word, claim};

impl Word for AtomicU32 {
    fn replace(&self, from: u32, to: u32) -> bool {
        self.compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }
}

/// The point at which the process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Death {
    Never,
    BeforeTheCommitPoint,
    AfterIt,
    /// After it has run the guest.
    Running,
}

/// The action of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    /// It takes over, with a keeper of its own.
    TakesOver,
    /// It is the old process: its update has failed, and it dismisses the keeper.
    Dismisses,
}

/// When the keeper acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keeper {
    /// When the process has ended.
    AtItsEnd,
    /// When the deadline passes, which may be at any instant.
    AtTheDeadline,
}

#[derive(Default)]
struct World {
    /// The commit points of the old keeper and of the new binary's.
    words: [AtomicU32; 2],
    dead: AtomicBool,
    /// The guest has run in the new process: the old state is stale.
    has_run: AtomicBool,
    /// Whether each of these runs the guest: the process, the old keeper, the new one.
    runs: [AtomicBool; 3],
}

fn process(world: &World, does: Process, death: Death) {
    let die = || world.dead.store(true, SeqCst);
    if death == Death::BeforeTheCommitPoint {
        return die();
    }
    let wanted = match does {
        Process::TakesOver => Claim::Vmm,
        Process::Dismisses => Claim::Released,
    };
    if !claim(&world.words[0], wanted) {
        // The keeper claimed first: the process ends itself.
        return die();
    }
    if death == Death::AfterIt {
        return die();
    }
    world.has_run.store(true, SeqCst);
    if death == Death::Running {
        return die();
    }
    world.runs[0].store(true, SeqCst);
}

fn old_keeper(world: &World) {
    if claim(&world.words[0], Claim::Keeper) {
        assert!(!world.has_run.load(SeqCst), "the guest has run, but the old state is continued");
        world.runs[1].store(true, SeqCst);
    }
}

fn new_keeper(world: &World) {
    // See `Watched::before`.
    if world.words[0].load(SeqCst) == Claim::Vmm as u32 && claim(&world.words[1], Claim::Keeper) {
        world.runs[2].store(true, SeqCst);
    }
}

/// Explores every interleaving, and returns their number.
fn explore(does: Process, death: Death, keeper: Keeper) -> usize {
    let explored = std::sync::Arc::new(AtomicUsize::new(0));
    let count = explored.clone();
    loom::model(move || {
        count.fetch_add(1, Relaxed);
        let world = Arc::new(World::default());
        assert_eq!(world.words[0].load(SeqCst), UNDECIDED);
        let spawn = |act: fn(&World)| {
            let world = world.clone();
            thread::spawn(move || act(&world))
        };
        let at_any_time = (keeper == Keeper::AtTheDeadline).then(|| spawn(old_keeper));
        let vmm = {
            let world = world.clone();
            thread::spawn(move || process(&world, does, death))
        };
        vmm.join().unwrap();
        if world.dead.load(SeqCst) {
            let keepers = [
                (keeper == Keeper::AtItsEnd).then(|| spawn(old_keeper)),
                (does == Process::TakesOver).then(|| spawn(new_keeper)),
            ];
            keepers.into_iter().flatten().for_each(|keeper| keeper.join().unwrap());
        }
        at_any_time.into_iter().for_each(|keeper| keeper.join().unwrap());
        let run = [0, 1, 2].map(|who: usize| world.runs[who].load(SeqCst));
        let dismissed = does == Process::Dismisses && world.dead.load(SeqCst);
        let running = run.iter().filter(|runs| **runs).count();
        // A process that has dismissed its keeper and then dies takes the guest with it, like any
        // VMM.
        let lost = dismissed && world.words[0].load(SeqCst) == Claim::Released as u32;
        assert_eq!(running, usize::from(!lost), "{does:?}, dies {death:?}, {keeper:?}: {run:?}");
    });
    explored.load(Relaxed)
}

#[rstest]
fn exactly_one_process_runs_the_guest(
    #[values(Process::TakesOver, Process::Dismisses)] does: Process,
    #[values(Death::Never, Death::BeforeTheCommitPoint, Death::AfterIt, Death::Running)]
    death: Death,
    #[values(Keeper::AtItsEnd, Keeper::AtTheDeadline)] keeper: Keeper,
) {
    let explored = explore(does, death, keeper);
    println!("{does:?}, dies {death:?}, keeper {keeper:?}: {explored} interleavings");
    assert!(explored > 0);
}

/// Explores a transfer: the guest is offered to another process, which claims it or dies before,
/// while the old process takes it back at its deadline, or dies and leaves it to its keeper.
#[rstest]
fn transferred_guest_runs_in_one_process(
    #[values(true, false)] old_dies: bool,
    #[values(true, false)] new_dies: bool,
) {
    loom::model(move || {
        let word = Arc::new(AtomicU32::new(UNDECIDED));
        let claims = |wanted: Claim| {
            let word = word.clone();
            thread::spawn(move || claim(&*word, wanted))
        };
        let new = (!new_dies).then(|| claims(Claim::Successor));
        let old = claims(if old_dies { Claim::Keeper } else { Claim::Released });
        let claims = [new, Some(old)].into_iter().flatten().map(|claim| claim.join().unwrap());
        assert_eq!(claims.filter(|won| *won).count(), 1);
    });
}

/// Proves that the model can fail: a process that skips the commit point runs beside its keeper.
#[test]
fn model_detects_a_skipped_commit_point() {
    let found = std::panic::catch_unwind(|| {
        loom::model(|| {
            let world = Arc::new(World::default());
            let keeper = {
                let world = world.clone();
                thread::spawn(move || old_keeper(&world))
            };
            world.has_run.store(true, SeqCst);
            keeper.join().unwrap();
        });
    });
    assert!(found.is_err());
}
