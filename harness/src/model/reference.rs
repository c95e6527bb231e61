//! The reference model: the effect of each step on a VM, as a pure function of the state before it.
//!
//! It is independent of the session that drives the VMM, so that each checks the other.

use crate::scenario::interrupt::REHEARSING;
use crate::scenario::{
    Channel, CommandKind, Expect, Inject, Interruption, KillOutcome, Limit, Migrate, Mode,
    RaceCommand, RunTarget, SerialAction, Step, Vm, Wait, expansion,
};

use crate::model::guests::{Guest, Marker};

/// The run state of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// The guest has not started yet, or was reset while it was stopped.
    Prelaunch,
    /// It runs.
    Running,
    /// It was stopped.
    Paused,
    /// The VMM has ended.
    Gone,
}

impl Run {
    /// Its name in QMP.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prelaunch => "prelaunch",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Gone => "gone",
        }
    }
}

/// What `query-migrate` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Migration {
    /// Nothing yet.
    None,
    /// `completed`.
    Completed,
    /// `failed`.
    Failed,
    /// `cancelled`.
    Cancelled,
    /// The last update could end in more than one way.
    Unknown,
}

impl Migration {
    /// Whether it agrees with the observed status.
    pub(super) fn allows(self, seen: Option<&str>) -> bool {
        match self {
            Self::None => seen.is_none(),
            Self::Completed => seen == Some("completed"),
            Self::Failed => seen == Some("failed"),
            Self::Cancelled => seen == Some("cancelled"),
            Self::Unknown => true,
        }
    }

    /// Its name in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Unknown => "anything",
        }
    }
}

/// The state of a VM that its next steps depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The run state.
    pub run: Run,
    /// How the last update ended.
    pub migration: Migration,
    /// Whether the last update did not succeed.
    pub after_failure: bool,
    /// Whether an update that was to succeed has left its state file.
    pub saved: bool,
    /// Whether a client is connected to the serial port.
    pub client: bool,
    /// The limit that is set, if any.
    pub limit: Option<Limit>,
    /// Whether the file that the VMM was started from has changed.
    pub binary_changed: bool,
    /// Where the guest is among its markers.
    pub marker: Marker,
    /// Whether a reset may not have led to a boot yet.
    pub unbooted: bool,
    /// Whether `cpr-exec-command` is set; only an update that succeeds clears it.
    pub command_left: bool,
    /// Whether commands are rehearsed unless an update says otherwise; `None` if unknown. Keeps the
    /// setting of the last update until one succeeds.
    pub rehearses: Option<bool>,
    /// Whether rehearsals have a longer deadline than the default.
    pub patient: bool,
    /// The fault that is armed for the next update.
    pub armed: Option<Inject>,
}

/// The rules for one VM.
#[derive(Clone, Debug)]
pub struct Model {
    vm: Vm,
    /// What its guest does on its own.
    pub guest: Guest,
    /// Whether the VMM rehearses commands; if so, a refusal leaves no trace in `query-migrate`.
    pub rehearses: bool,
}

impl Model {
    /// Creates the model of `vm`.
    pub fn new(vm: &Vm, rehearses: bool) -> Self {
        Self { guest: Guest::of(vm), vm: vm.clone(), rehearses }
    }

    /// The VM.
    pub fn vm(&self) -> &Vm {
        &self.vm
    }

    /// Returns the state after `boot`.
    pub fn boot(&self) -> State {
        State {
            run: if self.vm.paused { Run::Prelaunch } else { Run::Running },
            migration: Migration::None,
            after_failure: false,
            saved: false,
            client: false,
            limit: None,
            binary_changed: false,
            marker: Marker::default(),
            unbooted: false,
            command_left: false,
            rehearses: Some(self.rehearses),
            patient: false,
            armed: None,
        }
    }

    /// Returns the state after `step`.
    pub fn after(&self, before: &State, step: &Step) -> State {
        let mut state = before.clone();
        match step {
            Step::Boot => return self.boot(),
            Step::Stop => stop(&mut state),
            Step::Cont => cont(&mut state),
            Step::Reset => reset(&mut state),
            Step::Bring(RunTarget::Running) => cont(&mut state),
            Step::Bring(RunTarget::Stopped) => stop(&mut state),
            Step::Quit | Step::Kill => state.run = Run::Gone,
            Step::Wait(Wait::Marker(n)) => state.marker.reached(*n),
            Step::Wait(_) => state.unbooted = false,
            Step::Go(n) => state.marker.passed(*n),
            Step::EachMarker(n) => {
                self.updated(&mut state, &Expect::Completed);
                state.marker.passed(*n);
            }
            Step::Nmi | Step::Irqfd | Step::InitSipi(_) => state.marker.sent = true,
            Step::Serial(wish) => state.client = *wish == SerialAction::Connect,
            Step::Inject(inject) => state.armed = Some(inject.clone()),
            Step::Migrate(migrate) => {
                state.armed = None;
                let sets = migrate.mode == Mode::CprExec && migrate.command != CommandKind::Missing;
                state.command_left |= sets;
                state.rehearses = migrate.rehearsal.or(state.rehearses);
                self.updated(&mut state, &migrate.expect);
                state.saved |= saves(migrate);
            }
            // The VMM after it is another process.
            Step::RestartHost(_) => {
                return State {
                    run: state.run,
                    migration: Migration::Completed,
                    marker: state.marker,
                    unbooted: state.unbooted,
                    ..self.boot()
                };
            }
            Step::KillInUpdate(kill) if kill.expect == KillOutcome::Revived => {
                // Or started again, and stopped as before, if the kill did not hit the update.
                return State {
                    run: state.run,
                    migration: Migration::Unknown,
                    saved: state.saved,
                    unbooted: state.unbooted,
                    command_left: true,
                    rehearses: state.rehearses.filter(|_| kill.rehearsal == self.rehearses),
                    ..self.boot()
                };
            }
            Step::KillInUpdate(_) => return State { saved: state.saved, ..self.boot() },
            Step::KillVmm(kill) if kill.expect == KillOutcome::Revived => {}
            Step::KillVmm(_) | Step::EndBy(_) => state.run = Run::Gone,
            Step::Soak(soak) if soak.in_boot => {
                self.updated(&mut state, &Expect::Completed);
                cont(&mut state);
            }
            Step::Soak(_) | Step::Measure(_) => self.updated(&mut state, &Expect::Completed),
            Step::Interrupt(interrupt) => {
                (state.patient, state.command_left) = (true, true);
                let early = interrupt.point == REHEARSING;
                self.interrupted(&mut state, interrupt.with, early);
            }
            Step::Race(commands) => self.race(&mut state, commands),
            Step::Limit(Limit::Restore) => state.limit = None,
            Step::Limit(limit) => state.limit = Some(*limit),
            Step::Binary(_) => state.binary_changed = true,
            Step::Faults(_)
            | Step::KillAt(_)
            | Step::Repeat(_)
            | Step::Signal(_)
            | Step::Interrupts(_) => {
                let parts = expansion::expand(vec![step.clone()]);
                return parts.iter().fold(state, |state, part| self.after(&state, part));
            }
        }
        state
    }

    fn updated(&self, state: &mut State, ending: &Expect) {
        state.after_failure = !matches!(ending, Expect::Completed | Expect::Any | Expect::Survives);
        match ending {
            Expect::Completed => {
                state.migration = Migration::Completed;
                (state.command_left, state.patient) = (false, false);
                state.rehearses = Some(self.rehearses);
            }
            Expect::Failed(_) => state.migration = Migration::Failed,
            Expect::Cancelled => state.migration = Migration::Cancelled,
            Expect::Refused(_) if self.rehearses => {}
            Expect::Refused(_) | Expect::NotCompleted(_) => state.migration = Migration::Unknown,
            Expect::Any | Expect::Revived | Expect::Survives => {
                state.migration = Migration::Unknown;
                state.rehearses = state.rehearses.filter(|&left| left == self.rehearses);
            }
            Expect::Ended => state.run = Run::Gone,
        }
    }

    fn interrupted(&self, state: &mut State, with: Interruption, early: bool) {
        let cancelled = early && with.cancels();
        let ending = if cancelled { Expect::Refused(String::new()) } else { Expect::Completed };
        self.updated(state, &ending);
        match with {
            Interruption::Stop => stop(state),
            Interruption::Cont => cont(state),
            Interruption::Reset | Interruption::GuestReset => reset(state),
            Interruption::Quit => state.run = Run::Gone,
            Interruption::Migrate
            | Interruption::MigrateCancel
            | Interruption::Garbage
            | Interruption::Half
            | Interruption::Silent => {}
        }
    }

    fn race(&self, state: &mut State, commands: &[RaceCommand]) {
        if commands.iter().any(|command| command.ends()) {
            state.run = Run::Gone;
            return;
        }
        let mut was_reset = false;
        for command in commands {
            match command {
                RaceCommand::Migrate => self.updated(state, &Expect::Completed),
                RaceCommand::Stop => stop(state),
                RaceCommand::Cont => cont(state),
                RaceCommand::Reset | RaceCommand::GuestReset => {
                    was_reset |= state.run == Run::Running;
                    reset(state);
                }
                RaceCommand::Quit | RaceCommand::GuestExit => {}
            }
        }
        state.unbooted |= was_reset && state.run != Run::Running;
    }
}

fn stop(state: &mut State) {
    if state.run == Run::Running {
        state.run = Run::Paused;
    }
}

fn cont(state: &mut State) {
    state.run = Run::Running;
    state.unbooted = false;
}

/// Resets as QEMU does: a machine that is stopped goes back to `prelaunch`.
fn reset(state: &mut State) {
    if state.run != Run::Running {
        state.run = Run::Prelaunch;
    }
    state.marker = Marker::default();
}

/// Whether it leaves a state file that can replace another's.
fn saves(migrate: &Migrate) -> bool {
    let by_file = migrate.mode == Mode::CprExec && migrate.channel == Channel::File;
    by_file && migrate.expect == Expect::Completed
}
