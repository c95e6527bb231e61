//! Steps that stand for many: what each becomes.

use super::fault::{ACTIONS, HANGING_MS, Inject};
use super::interrupt::{Interrupt, Interruption};
use super::signal::{EndSignal, SignalAt};
use super::step::{Repeat, RunTarget, Step};
use super::update::{Expect, Migrate};

/// Replaces `faults`, `kill-at`, `signal`, `interrupts` and `repeat` by the steps they stand for.
pub fn expand(steps: Vec<Step>) -> Vec<Step> {
    let expand = |step| match step {
        Step::Faults(point) => every_action(&point),
        Step::KillAt(point) => kill_at(&point).into(),
        Step::Repeat(Repeat { times, steps }) => {
            let round = expand(steps);
            std::iter::repeat_n(round, times as usize).flatten().collect()
        }
        Step::Signal(signal) => ending_by(signal).into(),
        Step::Interrupts(point) => every_interruption(&point),
        step => vec![step],
    };
    steps.into_iter().flat_map(expand).collect()
}

/// How an update must end that runs into `action` at `point`; none if the action does not apply to
/// that point.
pub fn expected(point: &str, action: &str) -> Option<Expect> {
    let undone = |text: &str| Some(Expect::NotCompleted(text.to_owned()));
    let here = format!("fail point {point}");
    match action {
        "errno=EIO" => undone(&format!("{here}: Input/output error (os error 5)")),
        "panic" => undone(&here),
        "abort" => undone("SIGABRT"),
        "segv" => undone("SIGSEGV at address 0x8"),
        "hang" => undone("its deadline passed"),
        "short-write" if !matches!(point, "channel" | "state") => None,
        "short-write" => undone(" bytes after "),
        "kill-helper" => Some(Expect::Completed),
        "no-fds" | "no-memory" => Some(Expect::Any),
        _ => None,
    }
}

/// SIGKILL at `point`, which the VM must survive, followed by an update that must succeed.
fn kill_at(point: &str) -> [Step; 3] {
    fault(point, "sigkill", Expect::Revived)
}

/// Every action at `point`, each followed by an update that must succeed.
fn every_action(point: &str) -> Vec<Step> {
    let expected = |action| Some((action, expected(point, action)?));
    let wanted = ACTIONS.into_iter().filter_map(expected);
    wanted.flat_map(|(action, expect)| fault(point, action, expect)).collect()
}

fn fault(point: &str, action: &str, expect: Expect) -> [Step; 3] {
    let inject = Inject { point: point.to_owned(), action: action.to_owned() };
    let update = Migrate {
        // Only there it is of any use, and it takes its time.
        rehearsal: Some(point == "rehearsal"),
        deadline_ms: (action == "hang").then_some(HANGING_MS),
        expect,
        ..Migrate::default()
    };
    let good = Migrate { rehearsal: Some(false), ..Migrate::default() };
    [Step::Inject(inject), Step::Migrate(update), Step::Migrate(good)]
}

/// Every interruption at `point`, in turn, on one VM; the last one ends the VMM.
fn every_interruption(point: &str) -> Vec<Step> {
    use Interruption::{Cont, Garbage, Half, Migrate, MigrateCancel, Quit, Reset, Silent, Stop};
    // Twice what leads to a state in which the guest is already.
    let all = [Stop, Stop, Half, Cont, Cont, Reset, Migrate, MigrateCancel, Garbage, Silent, Quit];
    let step = |with| Step::Interrupt(Interrupt { point: point.to_owned(), with });
    all.map(step).into()
}

/// The steps for an update of a running guest, or with SIGINT of a stopped one, during which the
/// VMM must end. With SIGTERM, the update is always rehearsed.
fn ending_by(SignalAt { point, signal }: SignalAt) -> [Step; 3] {
    let guest = if signal == EndSignal::Sigint { RunTarget::Stopped } else { RunTarget::Running };
    let rehearsed = point == "rehearsal" || signal == EndSignal::Sigterm;
    let update =
        Migrate { rehearsal: Some(rehearsed), expect: Expect::Ended, ..Migrate::default() };
    let action = format!("signal={}", signal.name());
    [Step::Bring(guest), Step::Inject(Inject { point, action }), Step::Migrate(update)]
}
