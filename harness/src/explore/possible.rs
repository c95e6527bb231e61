//! Decides which steps the grammar may use in which state: those whose result the model can
//! predict.

use super::expectation::{can_be_updated, expect};
use crate::model::guests::{End, Host};
use crate::model::reference::{Model, Run, State};
use crate::scenario::interrupt::REHEARSING;
use crate::scenario::{
    Channel, CommandKind, Interrupt, Interruption, KillOutcome, Limit, Migrate, RaceCommand,
    SerialAction, SerialKind, Step, Wait, expansion, fault,
};

/// Whether `step` is possible in `state`; an update must also expect what the model predicts.
pub fn is_possible(model: &Model, state: &State, step: &Step) -> bool {
    if state.run == Run::Gone {
        return false;
    }
    let (guest, marker) = (&model.guest, &state.marker);
    let runs = state.run == Run::Running;
    // Under a limit only updates have a defined result.
    let free = state.limit.is_none();
    let updates = can_be_updated(model, state);
    let ready = state.armed.is_none();
    match step {
        Step::Migrate(migrate) => {
            suits_the_fault(migrate, state)
                && expect(model, state, migrate).as_ref() == Some(&migrate.expect)
        }
        _ if !ready => false,
        Step::Boot => false,
        Step::Stop | Step::Cont | Step::Bring(_) | Step::Quit | Step::Kill => true,
        Step::Reset => free && may_be_reset(model, state),
        Step::Wait(Wait::Heartbeats(_)) => runs,
        // The guest does not sweep while it waits at a marker.
        Step::Wait(Wait::Sweeps(_)) => {
            let heard = !guest.talks || state.client;
            runs && guest.sweeps && heard && marker.last >= guest.markers
        }
        Step::Wait(Wait::SerialLines(_)) => {
            runs && guest.talks && state.client && marker.last >= guest.markers
        }
        Step::Wait(Wait::Marker(n)) => {
            let own = !guest.updated_at_markers;
            runs && own && !marker.waits && *n == marker.last + 1 && *n <= guest.markers
        }
        Step::Go(n) => {
            let last = *n == guest.markers && guest.end != End::None;
            marker.waits && *n == marker.last + 1 && !last && (guest.host.is_none() || marker.sent)
        }
        Step::EachMarker(n) => {
            let last = guest.end != End::None && *n == guest.markers;
            let fresh = *marker == crate::model::guests::Marker::default();
            updates
                && runs
                && fresh
                && guest.host.is_none()
                && !last
                && *n > 0
                && (*n == guest.markers || !guest.updated_at_markers && *n < guest.markers)
        }
        Step::Nmi => free && sends(model, state, Host::Nmi),
        Step::Irqfd => free && sends(model, state, Host::Irqfd),
        // Only one guest reacts to it.
        Step::InitSipi(_) => false,
        Step::Serial(wish) => {
            let client = *wish == SerialAction::Leave;
            free && model.vm().serial == SerialKind::Unix && state.client == client
        }
        Step::Inject(inject) => {
            updates && expansion::expected(&inject.point, &inject.action).is_some()
        }
        // A VMM killed too late is started again, and its guest is at another marker.
        Step::KillInUpdate(kill) if kill.expect == KillOutcome::Revived && guest.markers > 0 => {
            false
        }
        Step::KillInUpdate(_) => {
            updates && !state.client && !model.vm().own_binary && state.run != Run::Prelaunch
        }
        // Only for VMs that have a keeper from boot on, and steps that end the VMM.
        Step::KillVmm(_) | Step::EndBy(_) => false,
        // It would end the search.
        Step::RestartHost(_) => false,
        // Used only by benches.
        Step::Measure(_) => false,
        Step::Soak(_) => updates && runs && guest.host.is_none(),
        Step::Interrupt(interrupt) => updates && interrupts(model, state, interrupt),
        Step::Race(commands) => races(model, state, commands),
        Step::Limit(Limit::Restore) => !free,
        Step::Limit(limit) => updates && !limit.is_relative_to_nothing(),
        Step::Binary(_) => free && model.vm().own_binary && !state.binary_changed,
        Step::Signal(signal) => updates && signal.signal.asks(),
        Step::Faults(_) | Step::KillAt(_) | Step::Repeat(_) | Step::Interrupts(_) => {
            let mut state = state.clone();
            expansion::expand(vec![step.clone()]).iter().all(|part| {
                let possible = is_possible(model, &state, part);
                state = model.after(&state, part);
                possible
            })
        }
    }
}

/// Whether the update fits the armed fault, or none is armed.
fn suits_the_fault(migrate: &Migrate, state: &State) -> bool {
    let Some(inject) = &state.armed else {
        return migrate.deadline_ms.is_none_or(|ms| ms > fault::HANGING_MS);
    };
    let deadline = (inject.action == "hang").then_some(fault::HANGING_MS);
    migrate.rehearsal == Some(inject.point == "rehearsal")
        && migrate.deadline_ms == deadline
        && migrate.repeat == 1
}

/// Whether a reset is possible: a guest whose client counts its lines would restart the count, and
/// an earlier reset must have led to a boot.
fn may_be_reset(model: &Model, state: &State) -> bool {
    !model.guest.talks && !state.unbooted
}

fn sends(model: &Model, state: &State, host: Host) -> bool {
    match model.guest.host {
        Some(awaited) => awaited == host && state.marker.waits && !state.marker.sent,
        // Other guests have not enabled the interrupt and ignore it.
        None => model.vm().guest != "interrupts" && model.vm().guest != "modes",
    }
}

/// Whether the guest ends or resets itself once it is let go.
fn at_its_end(model: &Model, state: &State, end: End) -> bool {
    let marker = &state.marker;
    model.guest.end == end
        && state.run == Run::Running
        && marker.waits
        && marker.last + 1 == model.guest.markers
}

fn interrupts(model: &Model, state: &State, interrupt: &Interrupt) -> bool {
    let Interrupt { point, with } = interrupt;
    let started = state.run != Run::Prelaunch;
    let known = point == REHEARSING || fault::POINTS.contains(&point.as_str());
    known
        && match with {
            Interruption::Cont | Interruption::Stop => started,
            Interruption::Reset => state.run == Run::Running && may_be_reset(model, state),
            Interruption::GuestReset => point == "pause" && at_its_end(model, state, End::Reset),
            _ => true,
        }
}

fn races(model: &Model, state: &State, commands: &[RaceCommand]) -> bool {
    let count = |wanted: RaceCommand| commands.iter().filter(|c| **c == wanted).count();
    let ends = commands.iter().filter(|command| command.ends()).count();
    let resets = commands.iter().filter(|command| command.resets()).count();
    let by_guest = count(RaceCommand::GuestReset) + count(RaceCommand::GuestExit);
    let moves = count(RaceCommand::Stop) + count(RaceCommand::Cont);
    let updates = count(RaceCommand::Migrate) == 0 || can_be_updated(model, state);
    let guest_can = commands.iter().all(|command| match command {
        RaceCommand::GuestReset => at_its_end(model, state, End::Reset),
        RaceCommand::GuestExit => at_its_end(model, state, End::Exit),
        RaceCommand::Reset => may_be_reset(model, state),
        _ => true,
    });
    let only_updates = count(RaceCommand::Migrate) == commands.len();
    let free = state.limit.is_none() && (only_updates || state.run != Run::Prelaunch);
    // The order of the guest's part and a `stop` is undefined.
    let decided = by_guest == 0 || moves == 0;
    !commands.is_empty() && free && updates && guest_can && decided && ends <= 1 && resets <= 1
}

/// Keeps those of `steps` that are possible one after the other, and sets what each update expects.
pub fn keep_possible(model: &Model, steps: &[Step]) -> Vec<Step> {
    let mut state = model.boot();
    let mut kept: Vec<Step> = Vec::new();
    for step in steps {
        let step = completed(model, &state, step);
        if !is_possible(model, &state, &step) {
            continue;
        }
        state = model.after(&state, &step);
        kept.push(step);
    }
    while matches!(kept.last(), Some(Step::Inject(_))) {
        kept.pop();
    }
    kept
}

/// Completes an update with what follows from the state.
pub fn completed(model: &Model, state: &State, step: &Step) -> Step {
    let Step::Migrate(migrate) = step else { return step.clone() };
    let mut migrate = migrate.clone();
    if let Some(inject) = &state.armed {
        migrate = Migrate {
            rehearsal: Some(inject.point == "rehearsal"),
            deadline_ms: (inject.action == "hang").then_some(fault::HANGING_MS),
            ..Migrate::default()
        };
    } else if migrate.deadline_ms.is_some_and(|ms| ms <= fault::HANGING_MS) {
        migrate.deadline_ms = None;
    }
    if let Some(expect) = expect(model, state, &migrate) {
        migrate.expect = expect;
    }
    Step::Migrate(migrate)
}

/// Whether nothing is wrong with the update itself.
pub fn is_good(migrate: &Migrate) -> bool {
    let good = [CommandKind::Good, CommandKind::Wrapper, CommandKind::InPath];
    good.contains(&migrate.command) && migrate.channel == Channel::File
}
