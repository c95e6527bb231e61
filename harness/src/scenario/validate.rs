//! Checks that a well-formed scenario makes sense, and finds the place where it does not.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;

use super::ScenarioError;
use super::command_kind::CommandKind;
use super::kill::{EndBy, Keeper, KillOutcome};
use super::kill_in_update::{KillInUpdate, Origin};
use super::limit::Limit;
use super::model::{Case, Channel, Expect, Migrate, Step};

/// The largest number of vCPUs that a guest supports.
const MAX_CPUS: u32 = guest_images::mailbox::MAX_CPUS as u32;

/// An error in the meaning of a scenario, and its place.
#[derive(Debug)]
pub struct ValidationError {
    place: Place,
    message: String,
}

/// A part of a scenario file.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// A step, by its number from 1.
    Step(usize),
    /// A key of `vm`.
    Vm(&'static str),
}

/// Checks `case`, which does not come from a file.
pub fn check_made(case: &Case) -> Result<(), String> {
    let numbers: Vec<usize> = (1..=case.steps.len()).collect();
    check(case, &numbers).map_err(|invalid| invalid.message)
}

/// Checks `case`, whose steps have these numbers in the file.
pub fn check(case: &Case, numbers: &[usize]) -> Result<(), ValidationError> {
    let invalid = |place, message: String| {
        Err(ValidationError { place, message: format!("{}: {message}", case.name) })
    };
    if case.steps.first() != Some(&Step::Boot) {
        return invalid(Place::Step(1), "the first step must be \"boot\"".into());
    }
    if guest_images::guest(&case.vm.guest).is_none() {
        let all: Vec<&str> = guest_images::GUESTS.iter().map(|guest| guest.name).collect();
        let message = format!("unknown guest `{}`; known: {}", case.vm.guest, all.join(", "));
        return invalid(Place::Vm("guest"), message);
    }
    if !(1..=MAX_CPUS).contains(&case.vm.cpus) {
        let message = format!("vm.cpus is {}, must be 1 to {MAX_CPUS}", case.vm.cpus);
        return invalid(Place::Vm("cpus"), message);
    }
    if case.vm.memory.0 < 2 << 20 {
        let message = format!("vm.memory is {}, must be 2M or more", case.vm.memory);
        return invalid(Place::Vm("memory"), message);
    }
    let mut before = Before::default();
    for (index, (step, &number)) in case.steps.iter().zip(numbers).enumerate() {
        let followers = &case.steps[index + 1..];
        if let Err(message) = before.step(case, step, followers) {
            return invalid(Place::Step(number), format!("step {number}{message}"));
        }
    }
    Ok(())
}

/// The state after the steps so far.
#[derive(Default)]
struct Before {
    booted: bool,
    limited: bool,
    saved: bool,
}

impl Before {
    /// Checks that `step` is possible now, and records what it does.
    fn step(&mut self, case: &Case, step: &Step, followers: &[Step]) -> Result<(), String> {
        let no = |message: &str| Err(message.to_owned());
        match step {
            Step::Boot if self.booted => return no(": the VM has already booted"),
            Step::Boot => self.booted = true,
            step if step.ends() && !followers.is_empty() => {
                return no(" ends the VMM; nothing can follow it");
            }
            Step::Race(commands) if commands.is_empty() => return no(": race has no commands"),
            Step::KillInUpdate(kill) => return kill_in_update(case, kill),
            Step::KillVmm(kill) if kill.repeat == 0 => return no(": times is 0"),
            Step::KillVmm(kill) if kill.expect == KillOutcome::Gone && kill.repeat > 1 => {
                return no(": a VM that is gone cannot be killed again");
            }
            Step::KillVmm(kill)
                if (kill.expect == KillOutcome::Revived) != keeper_is(case, Keeper::On) =>
            {
                return no(": outside updates a VM is revived if, and only if, vm.keeper = \"on\"");
            }
            Step::EndBy(EndBy::CgroupKill) if case.vm.memory_limit.is_none() => {
                return no(": requires vm.memory-limit, which gives the VMM its own cgroup");
            }
            Step::Soak(soak) if soak.updates == 0 => return no(": times is 0"),
            Step::Limit(Limit::Restore) if !self.limited => {
                return no(": there is no limit to restore; set one first");
            }
            Step::Limit(limit) if limit.is_relative_to_nothing() => {
                return no(": nproc and fsize cannot be relative to current use; remove the +");
            }
            Step::Limit(limit) => self.limited = *limit != Limit::Restore,
            Step::Binary(_) if !case.vm.own_binary => {
                return no(": requires vm.own-binary = true");
            }
            Step::Inject(_) if !matches!(followers.first(), Some(Step::Migrate(_))) => {
                return no(": inject must be followed by migrate");
            }
            Step::Migrate(migrate) => return self.migrate(migrate),
            _ => {}
        }
        Ok(())
    }

    fn migrate(&mut self, migrate: &Migrate) -> Result<(), String> {
        let no = |message: &str| Err(message.to_owned());
        if migrate.command == CommandKind::ReplacesState && !self.saved {
            return no(": there is no earlier state; put a successful update to a file before it");
        }
        self.saved |= migrate.expect == Expect::Completed && migrate.channel == Channel::File;
        if migrate.repeat == 0 {
            return no(": times is 0");
        }
        if let Expect::Failed(failure) = &migrate.expect
            && failure.errno.or(migrate.command.errno()).is_none()
            && failure.text.is_empty()
        {
            return no(": specify the errno or the text that the update fails with");
        }
        Ok(())
    }
}

fn keeper_is(case: &Case, keeper: Keeper) -> bool {
    case.vm.keeper == Some(keeper)
}

fn kill_in_update(case: &Case, kill: &KillInUpdate) -> Result<(), String> {
    let no = |message: &str| Err(message.to_owned());
    let kills = !kill.signal.asks();
    match kill.expect {
        _ if kill.repeat == 0 => no(": times is 0"),
        KillOutcome::Gone if kills && !keeper_is(case, Keeper::Off) => {
            no(": a keeper survives SIGKILL; write vm.keeper = \"off\" or expect = \"revived\"")
        }
        KillOutcome::Revived if !kills => no(": a VM is revived only after SIGKILL"),
        KillOutcome::Revived if keeper_is(case, Keeper::Off) => no(": no revival without a keeper"),
        // Otherwise the kill may come before the VMM reads `migrate`; the update then follows the
        // revival.
        KillOutcome::Revived if keeper_is(case, Keeper::On) && kill.from != Origin::Setup => {
            no(": vm.keeper = \"on\" requires from = \"setup\"")
        }
        _ => Ok(()),
    }
}

impl ValidationError {
    /// Converts it to an error in `file`, which contains `text`.
    pub fn told(self, file: &str, text: &str) -> ScenarioError {
        match self.place.find(text) {
            Some(span) => ScenarioError::at(file, text, span.start, self.message, String::new()),
            None => ScenarioError::sense(file, self.message),
        }
    }
}

impl Place {
    /// Finds the place in `text`; for a missing key, the table it would be in.
    fn find(self, text: &str) -> Option<Range<usize>> {
        let spans: Spans = toml::from_str(text).ok()?;
        match self {
            Self::Step(number) => {
                let step = spans.steps.get_ref().get(number - 1).map(Spanned::span);
                step.or(Some(spans.steps.span()))
            }
            Self::Vm(key) => {
                let vm = spans.vm?;
                let value = vm.get_ref().get(key).map(Spanned::span);
                value.or(Some(vm.span()))
            }
        }
    }
}

/// The positions of the parts of a scenario file.
#[derive(Deserialize)]
struct Spans {
    steps: Spanned<Vec<Spanned<IgnoredAny>>>,
    vm: Option<Spanned<BTreeMap<String, Spanned<IgnoredAny>>>>,
}
