//! Whether a well-formed scenario makes sense, and where it does not.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use serde::de::IgnoredAny;
use toml::Spanned;

use super::ScenarioError;
use super::command_kind::CommandKind;
use super::kill::{EndBy, Fate, Keeper};
use super::kill_in_update::{KillInUpdate, Origin};
use super::limit::Limit;
use super::model::{Case, Channel, Expect, Migrate, Step};

/// More vCPUs than this no guest can use.
const MAX_CPUS: u32 = guest_images::mailbox::MAX_CPUS as u32;

/// What makes no sense, and where.
#[derive(Debug)]
pub struct Nonsense {
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

/// Looks at `case`, which stands in no file.
pub fn check_made(case: &Case) -> Result<(), String> {
    let numbers: Vec<usize> = (1..=case.steps.len()).collect();
    check(case, &numbers).map_err(|nonsense| nonsense.message)
}

/// Looks at `case`, whose steps have these numbers in its file.
pub fn check(case: &Case, numbers: &[usize]) -> Result<(), Nonsense> {
    let nonsense = |place, message: String| {
        Err(Nonsense { place, message: format!("{}: {message}", case.name) })
    };
    if case.steps.first() != Some(&Step::Boot) {
        return nonsense(Place::Step(1), "the first step must be \"boot\"".into());
    }
    if guest_images::guest(&case.vm.guest).is_none() {
        let all: Vec<&str> = guest_images::GUESTS.iter().map(|guest| guest.name).collect();
        let message = format!("no guest `{}`; there are {}", case.vm.guest, all.join(", "));
        return nonsense(Place::Vm("guest"), message);
    }
    if !(1..=MAX_CPUS).contains(&case.vm.cpus) {
        let message = format!("vm.cpus is {}, must be 1 to {MAX_CPUS}", case.vm.cpus);
        return nonsense(Place::Vm("cpus"), message);
    }
    if case.vm.memory.0 < 2 << 20 {
        let message = format!("vm.memory is {}, must be 2M or more", case.vm.memory);
        return nonsense(Place::Vm("memory"), message);
    }
    let mut before = Before::default();
    for (index, (step, &number)) in case.steps.iter().zip(numbers).enumerate() {
        let followers = &case.steps[index + 1..];
        if let Err(message) = before.step(case, step, followers) {
            return nonsense(Place::Step(number), format!("step {number}{message}"));
        }
    }
    Ok(())
}

/// What the steps so far have done.
#[derive(Default)]
struct Before {
    booted: bool,
    limited: bool,
    saved: bool,
}

impl Before {
    /// Whether `step` can come now.
    fn step(&mut self, case: &Case, step: &Step, followers: &[Step]) -> Result<(), String> {
        let no = |message: &str| Err(message.to_owned());
        match step {
            Step::Boot if self.booted => return no(": the VM is booted already"),
            Step::Boot => self.booted = true,
            step if step.ends() && !followers.is_empty() => {
                return no(" ends the VMM; nothing can follow it");
            }
            Step::Race(commands) if commands.is_empty() => return no(": a race without commands"),
            Step::KillInUpdate(kill) => return kill_in_update(case, kill),
            Step::KillVmm(kill) if kill.repeat == 0 => return no(": repeat is 0"),
            Step::KillVmm(kill) if kill.expect == Fate::Gone && kill.repeat > 1 => {
                return no(": what is gone cannot be killed again");
            }
            Step::KillVmm(kill)
                if (kill.expect == Fate::Revived) != keeper_is(case, Keeper::On) =>
            {
                return no(
                    ": outside of updates a VM is revived with vm.keeper = \"on\", only then",
                );
            }
            Step::EndBy(EndBy::CgroupKill) if case.vm.memory_limit.is_none() => {
                return no(": only with vm.memory_limit, which gives the VMM a cgroup of its own");
            }
            Step::Storm(storm) if storm.updates == 0 => return no(": updates is 0"),
            Step::Soak(soak) if soak.updates == 0 => return no(": updates is 0"),
            Step::Limit(Limit::Restore) if !self.limited => {
                return no(": no limit was set that could be restored");
            }
            Step::Limit(limit) if limit.is_relative_to_nothing() => {
                return no(": nproc and fsize are what they are set to; write no +");
            }
            Step::Limit(limit) => self.limited = *limit != Limit::Restore,
            Step::Binary(_) if !case.vm.own_binary => {
                return no(": only with vm.own_binary = true");
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
            return no(": there is no state of an earlier update to put there");
        }
        self.saved |= migrate.expect == Expect::Completed && migrate.channel == Channel::File;
        if migrate.repeat == 0 {
            return no(": repeat is 0");
        }
        if let Expect::Failed(failure) = &migrate.expect
            && failure.errno.or(migrate.command.errno()).is_none()
            && failure.text.is_empty()
        {
            return no(": say by which errno or text the update fails");
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
        _ if kill.repeat == 0 => no(": repeat is 0"),
        Fate::Gone if kills && !keeper_is(case, Keeper::Off) => {
            no(": a keeper survives SIGKILL; write vm.keeper = \"off\" or expect = \"revived\"")
        }
        Fate::Revived if !kills => no(": a signal that asks for the end is not survived"),
        Fate::Revived if keeper_is(case, Keeper::Off) => no(": nothing revives without a keeper"),
        // Or `migrate` may not have been read yet, and the update is then done after the revival.
        Fate::Revived if keeper_is(case, Keeper::On) && kill.from != Origin::Setup => {
            no(": with vm.keeper = \"on\" write from = \"setup\"")
        }
        _ => Ok(()),
    }
}

impl Nonsense {
    /// As an error about `file`, whose text this is.
    pub fn told(self, file: &str, text: &str) -> ScenarioError {
        match self.place.find(text) {
            Some(span) => ScenarioError::at(file, text, span.start, self.message, String::new()),
            None => ScenarioError::sense(file, self.message),
        }
    }
}

impl Place {
    /// Where it stands; for a key that is left out, what it would stand in.
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

/// Where the parts of a scenario stand.
#[derive(Deserialize)]
struct Spans {
    steps: Spanned<Vec<Spanned<IgnoredAny>>>,
    vm: Option<Spanned<BTreeMap<String, Spanned<IgnoredAny>>>>,
}
