//! What is wrong with a step because of those before or after it.

use super::Placed;
use crate::scenario::case::Case;
use crate::scenario::command_kind::CommandKind;
use crate::scenario::limit::Limit;
use crate::scenario::mistake::Mistake;
use crate::scenario::mode::Mode;
use crate::scenario::step::{SerialAction, Step, Wait};
use crate::scenario::tree::Part;
use crate::scenario::update::{Channel, Expect};

/// Returns what is wrong with the order of the steps of `case`, which have these paths.
pub fn check(case: &Case, paths: &[Vec<Part>]) -> Vec<Placed> {
    let mut wrong = Vec::new();
    if case.steps.first() != Some(&Step::Boot) {
        let path = paths.first().cloned().unwrap_or_else(|| vec![Part::Key("steps")]);
        let mistake = Mistake::new("the first step must be \"boot\"");
        wrong.push(Placed { path, mistake });
    }
    let mut before = Before::default();
    let mut ended = false;
    for (index, (step, path)) in case.steps.iter().zip(paths).enumerate() {
        if ended {
            let mistake = Mistake::new("the step before ends the VMM; nothing can follow it");
            wrong.push(Placed { path: path.clone(), mistake });
            break;
        }
        ended = step.ends();
        if let Some(mistake) = before.step(step, case.steps.get(index + 1)) {
            wrong.push(Placed { path: path.clone(), mistake });
        }
    }
    wrong
}

/// The state after the steps so far.
#[derive(Default)]
struct Before {
    booted: bool,
    limited: bool,
    saved: bool,
    connected: bool,
}

impl Before {
    /// Returns why `step` is impossible now, if it is, and records what it does.
    fn step(&mut self, step: &Step, next: Option<&Step>) -> Option<Mistake> {
        let no = |message: &str| Some(Mistake::new(message));
        match step {
            Step::Boot if self.booted => return no("the VM has already booted"),
            Step::Boot => self.booted = true,
            Step::Limit(Limit::Restore) if !self.limited => {
                return no("there is no limit to restore; set one first");
            }
            Step::Limit(limit) => self.limited = *limit != Limit::Restore,
            Step::Serial(action) => self.connected = *action == SerialAction::Connect,
            Step::Wait(Wait::SerialLines(_)) if !self.connected => {
                return no("no client is connected that could receive lines")
                    .map(|mistake| mistake.label("put `{ serial = \"connect\" }` before it"));
            }
            Step::Inject(_) => match next {
                Some(Step::Migrate(_)) => {}
                _ => return no("inject must be followed by migrate"),
            },
            step if to_another_process(step) && self.limited => {
                return no("the new VMM in another process has none of the limits that are set")
                    .map(|mistake| mistake.label("put `{ limit = \"restore\" }` before it"));
            }
            step if to_another_process(step) && self.connected => {
                return no("a client of the serial port stays with the old VMM")
                    .map(|mistake| mistake.label("put `{ serial = \"leave\" }` before it"));
            }
            Step::Migrate(update) => {
                if update.command == CommandKind::ReplacesState && !self.saved {
                    return no(
                        "there is no earlier state; put a successful update to a file before it",
                    );
                }
                let saves = update.mode == Mode::CprExec && update.channel == Channel::File;
                self.saved |= saves && update.expect == Expect::Completed;
            }
            _ => {}
        }
        None
    }
}

/// Whether the VM is in another process after `step`.
fn to_another_process(step: &Step) -> bool {
    match step {
        Step::Migrate(update) => update.mode.moves(),
        Step::RestartHost(_) => true,
        _ => false,
    }
}
