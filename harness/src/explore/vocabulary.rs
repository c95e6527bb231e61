//! All steps that sequences are drawn from, without those that this host or the VMM does not
//! support.

use clap::ValueEnum;

use super::kind::StepKind;
use crate::backend::{Backend, Feature};
use crate::model::reference::{Model, Run, State};
use crate::run::requirements;
use crate::scenario::interrupt::REHEARSING;
use crate::scenario::{
    Amount, BinaryChange, Case, Channel, CommandKind, EndSignal, Inject, Interrupt, Interruption,
    KillInUpdate, KillOutcome, Limit, Migrate, RaceCommand, RunTarget, SerialAction, SerialKind,
    Setbacks, SignalAt, Soak, Step, Vm, Wait, fault,
};

/// A short soak: failing updates are drawn as steps of their own.
const SOAK: Soak = Soak { updates: 5, within_ms: 5, setbacks: Setbacks::None, in_boot: false };

/// A step, or a fault with the update that meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Its kind.
    pub kind: StepKind,
    /// The step or steps.
    pub steps: Vec<Step>,
}

/// All available steps.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// Steps that do not end the VMM.
    pub words: Vec<Word>,
    /// Steps that end it.
    pub endings: Vec<Word>,
    /// Whether the VMM rehearses commands.
    pub rehearses: bool,
}

/// The most markers of any guest.
const MARKERS: u32 = 3;

/// All commands except the usual one; [`CommandKind::WithoutKvm`] is added separately.
fn commands() -> impl Iterator<Item = CommandKind> {
    let others = [CommandKind::Good, CommandKind::WithoutKvm];
    CommandKind::value_variants().iter().copied().filter(move |command| !others.contains(command))
}

/// Whether any VMM with `cpr-exec` survives `command`: the update succeeds, is refused or fails.
fn is_for_any_vmm(command: CommandKind) -> bool {
    use CommandKind::*;
    command.errno().is_some() && command != NoexecMount
        || matches!(command, Good | Wrapper | InPath | Missing | EmptyList)
}

/// Whether the mock supports steps of `kind`: only those that are the same for every guest.
fn is_for_the_mock(kind: StepKind) -> bool {
    use StepKind::*;
    matches!(
        kind,
        Stop | Cont
            | Bring
            | Reset
            | Wait
            | GoodUpdate
            | BadCommand
            | BadChannel
            | Race
            | Quit
            | Kill
    )
}

/// All channels except the usual one.
fn channels() -> impl Iterator<Item = Channel> {
    Channel::value_variants().iter().copied().filter(|channel| *channel != Channel::File)
}

impl Vocabulary {
    /// Returns the vocabulary of `backend` on this host.
    pub fn of(backend: &dyn Backend) -> Self {
        let ours = backend.lacks(Feature::Rehearsal).is_none();
        let fake = backend.name() == "mock";
        let can = |word: &Word| {
            let update = word.steps.iter().find_map(|step| match step {
                Step::Migrate(migrate) => Some(migrate),
                _ => None,
            });
            let known = ours
                || update.is_none_or(|update| {
                    // Without a rehearsal these are detected by exec, or not at all.
                    let exec = update.command.errno().is_none() || update.rehearsal == Some(false);
                    is_for_any_vmm(update.command) && exec && update.channel != Channel::Full
                });
            let known = known && (ours || word.kind != StepKind::Limit);
            let known = known && (!fake || is_for_the_mock(word.kind));
            known && requirements::unmet(&probe(Vm::default(), &word.steps), backend).is_none()
        };
        let words = words().into_iter().filter(can).collect();
        let endings = endings().into_iter().filter(can).collect();
        Self { words, endings, rehearses: ours }
    }

    /// Returns why a VM like this cannot run here, if so.
    pub fn unmet(backend: &dyn Backend, vm: &Vm) -> Option<String> {
        requirements::unmet(&probe(vm.clone(), &[]), backend)
    }

    /// Whether any step of `kind` is possible in `state`.
    pub fn has_kind(&self, model: &Model, state: &State, kind: StepKind) -> bool {
        let all = self.words.iter().chain(&self.endings);
        all.filter(|word| word.kind == kind).any(|word| self.fits(model, state, word))
    }

    /// Whether `word` is possible in `state`.
    pub fn fits(&self, model: &Model, state: &State, word: &Word) -> bool {
        let mut state = state.clone();
        word.steps.iter().all(|step| {
            let step = super::possible::completed(model, &state, step);
            let possible = super::possible::is_possible(model, &state, &step);
            state = model.after(&state, &step);
            possible
        })
    }

    /// Returns the words that are possible in `state`.
    pub fn fitting(&self, model: &Model, state: &State) -> Vec<&Word> {
        match state.run {
            Run::Gone => Vec::new(),
            _ => self.words.iter().filter(|word| self.fits(model, state, word)).collect(),
        }
    }
}

/// A case with only these steps.
fn probe(vm: Vm, steps: &[Step]) -> Case {
    let steps = [vec![Step::Boot], steps.to_vec()].concat();
    let steps = crate::scenario::expansion::expand(steps);
    Case {
        name: String::new(),
        summary: String::new(),
        seed: 0,
        deadline_ms: 0,
        max_blackout_ms: None,
        on_request: false,
        steps,
        vm,
    }
}

fn words() -> Vec<Word> {
    let one = |kind| move |step| Word { kind, steps: vec![step] };
    let update = |migrate: Migrate| {
        let kind = match (migrate.command, migrate.channel) {
            (CommandKind::Good | CommandKind::Wrapper | CommandKind::InPath, Channel::File) => {
                StepKind::GoodUpdate
            }
            (CommandKind::Good, _) => StepKind::BadChannel,
            _ => StepKind::BadCommand,
        };
        one(kind)(Step::Migrate(migrate))
    };
    let mut all: Vec<Word> = [
        (StepKind::Stop, Step::Stop),
        (StepKind::Cont, Step::Cont),
        (StepKind::Bring, Step::Bring(RunTarget::Running)),
        (StepKind::Bring, Step::Bring(RunTarget::Stopped)),
        (StepKind::Reset, Step::Reset),
        (StepKind::Wait, Step::Wait(Wait::Heartbeats(50))),
        (StepKind::Wait, Step::Wait(Wait::Sweeps(1))),
        (StepKind::Wait, Step::Wait(Wait::SerialLines(20))),
        (StepKind::Nmi, Step::Nmi),
        (StepKind::Irqfd, Step::Irqfd),
        (StepKind::SerialClient, Step::Serial(SerialAction::Connect)),
        (StepKind::SerialClient, Step::Serial(SerialAction::Leave)),
        (StepKind::Soak, Step::Soak(SOAK)),
        (StepKind::Limit, Step::Limit(Limit::Restore)),
    ]
    .map(|(kind, step)| one(kind)(step))
    .into();
    for n in 1..=MARKERS {
        all.push(one(StepKind::WaitMarker)(Step::Wait(Wait::Marker(n))));
        all.push(one(StepKind::Go)(Step::Go(n)));
        all.push(one(StepKind::EachMarker)(Step::EachMarker(n)));
    }
    let of = |rehearsal| Migrate { rehearsal, ..Migrate::default() };
    // The VMM's default is more frequent than the explicit settings.
    all.extend([None, None, None, Some(true), Some(false)].map(|rehearsal| update(of(rehearsal))));
    all.push(update(Migrate { deadline_ms: Some(10_000), ..Migrate::default() }));
    all.push(update(Migrate { repeat: 3, ..Migrate::default() }));
    for rehearsal in [None, Some(true), Some(false)] {
        all.extend(commands().map(|command| update(Migrate { command, ..of(rehearsal) })));
        all.extend(channels().map(|channel| update(Migrate { channel, ..of(rehearsal) })));
    }
    all.push(update(Migrate { command: CommandKind::WithoutKvm, ..Migrate::default() }));
    for channel in [Channel::Directory, Channel::Tcp] {
        all.push(update(Migrate { command: CommandKind::Enoent, channel, ..Migrate::default() }));
    }
    for point in fault::POINTS {
        let at = |action: &str| Inject { point: point.to_owned(), action: action.to_owned() };
        all.extend(fault::ACTIONS.map(|action| Word {
            kind: StepKind::Fault,
            steps: vec![Step::Inject(at(action)), Step::Migrate(Migrate::default())],
        }));
    }
    all.extend(interruptions(|with| with != Interruption::Quit));
    all.extend(races(false));
    all.extend(limits().map(|limit| one(StepKind::Limit)(Step::Limit(limit))));
    let changes = [BinaryChange::Deleted, BinaryChange::Replaced, BinaryChange::Overwritten];
    all.extend(changes.map(|change| one(StepKind::Binary)(Step::Binary(change))));
    for signal in [EndSignal::Sigkill, EndSignal::Sigterm, EndSignal::Sighup] {
        let expect = if signal.asks() { KillOutcome::Gone } else { KillOutcome::Revived };
        let kill = KillInUpdate { signal, expect, ..KillInUpdate::default() };
        all.push(one(StepKind::KillInUpdate)(Step::KillInUpdate(kill)));
    }
    all
}

fn limits() -> impl Iterator<Item = Limit> {
    let files = [0, 1, 2, 4, 8].map(|n| Limit::Nofile(Amount::Above(n)));
    let space = [64 << 10, 1 << 20, 8 << 20].map(|n| Limit::As(Amount::Above(n)));
    let others = [Limit::Nproc(Amount::Exactly(0)), Limit::Fsize(Amount::Exactly(4096))];
    files.into_iter().chain(space).chain(others)
}

fn interruptions(wanted: impl Fn(Interruption) -> bool) -> Vec<Word> {
    use Interruption::*;
    let all = [Stop, Cont, Reset, GuestReset, Quit, Migrate, MigrateCancel, Garbage, Half, Silent];
    let points = fault::POINTS.into_iter().chain([REHEARSING]);
    let at = |point: &str| {
        let point = point.to_owned();
        all.into_iter().map(move |with| Interrupt { point: point.clone(), with })
    };
    let word = |interrupt: Interrupt| Word {
        kind: StepKind::Interrupt,
        steps: vec![Step::Interrupt(interrupt)],
    };
    points.flat_map(at).filter(|interrupt| wanted(interrupt.with)).map(word).collect()
}

fn races(ending: bool) -> Vec<Word> {
    use RaceCommand::*;
    let all: &[&[RaceCommand]] = match ending {
        true => &[
            &[Quit, Migrate],
            &[Migrate, Quit],
            &[Stop, Migrate, Quit],
            &[GuestExit],
            &[GuestExit, Migrate],
        ],
        false => &[
            &[Migrate, Migrate],
            &[Migrate, Reset],
            &[Reset, Migrate],
            &[Migrate, Stop],
            &[Stop, Migrate],
            &[Migrate, Cont],
            &[Cont, Migrate],
            &[Stop, Migrate, Cont],
            &[Stop, Cont, Migrate],
            &[Migrate, Stop, Cont],
            &[Stop, Reset, Migrate],
            &[Reset, Stop, Cont],
            &[Migrate, Reset, Stop],
            &[Migrate, Stop, Migrate],
            &[GuestReset],
            &[GuestReset, Migrate],
            &[GuestReset, Migrate, Migrate],
        ],
    };
    let word = |commands: &&[RaceCommand]| Word {
        kind: StepKind::Race,
        steps: vec![Step::Race(commands.to_vec())],
    };
    all.iter().map(word).collect()
}

fn endings() -> Vec<Word> {
    let one = |kind, step| Word { kind, steps: vec![step] };
    let mut all = vec![one(StepKind::Quit, Step::Quit), one(StepKind::Kill, Step::Kill)];
    for point in fault::POINTS {
        for signal in [EndSignal::Sigterm, EndSignal::Sigint, EndSignal::Sighup] {
            let at = SignalAt { point: point.to_owned(), signal };
            all.push(one(StepKind::Signal, Step::Signal(at)));
        }
    }
    all.extend(interruptions(|with| with == Interruption::Quit));
    all.extend(races(true));
    all
}

/// Returns the VMs to draw from, with their weights.
pub fn vms(backend: &dyn Backend) -> Vec<(u32, Vm)> {
    let vm = |guest: &str, cmdline: &str| Vm {
        guest: guest.to_owned(),
        cmdline: cmdline.to_owned(),
        ..Vm::default()
    };
    let mut all = vec![
        (20, vm("heartbeat", "")),
        (6, vm("heartbeat", "markers=2")),
        (6, vm("heartbeat", "markers=1 end=reset")),
        (3, vm("heartbeat", "markers=1 end=exit")),
        (20, vm("pattern", "")),
        (6, vm("pattern", "markers=2")),
        (2, vm("registers", "markers=2")),
        (2, vm("smp", "markers=2")),
        (2, vm("port-io", "")),
        (2, vm("mmio", "")),
        (2, vm("x2apic", "")),
        (2, vm("interrupts", "markers=3 test=host-nmi")),
        (2, vm("interrupts", "markers=3 test=host-irqfd")),
        (4, Vm { serial: SerialKind::Unix, ..vm("serial", "") }),
    ];
    let tests = [
        ("timer", "oneshot"),
        ("timer", "deadline"),
        ("timer", "pit"),
        ("clock", "tsc"),
        ("clock", "pvclock"),
        ("interrupts", "edge"),
        ("interrupts", "nmi"),
    ];
    all.extend(tests.map(|(guest, test)| (1, vm(guest, &format!("test={test}")))));
    if backend.name() == "mock" {
        all.truncate(1);
    }
    all.retain(|(_, vm)| Vocabulary::unmet(backend, vm).is_none());
    all
}
