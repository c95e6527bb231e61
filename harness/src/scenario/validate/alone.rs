//! What is wrong with a step by itself, on its VM.

use cpr_vmm::failpoints::{Action, Point};

use super::{mode, no_time};
use crate::scenario::fault::Inject;
use crate::scenario::interrupt::{Interrupt, Interruption, REHEARSING};
use crate::scenario::kill::{EndBy, Keeper, KillOutcome, KillVmm};
use crate::scenario::kill_in_update::{KillInUpdate, Origin};
use crate::scenario::mistake::Mistake;
use crate::scenario::step::{HostRestart, RaceCommand, StartAt, Step, Wait};
use crate::scenario::tree::Part;
use crate::scenario::update::{Expect, Migrate};
use crate::scenario::vm::{SWEEPING, SerialKind, Vm};

/// Mistakes in a step, each with the path below the step.
type Wrong = Vec<(Vec<Part>, Mistake)>;

/// The value of the step.
const VALUE: &[Part] = &[Part::Only];

/// Returns what is wrong with `step` on `vm`.
pub fn check(vm: &Vm, step: &Step) -> Wrong {
    match step {
        Step::Wait(wait) => waiting(vm, *wait),
        // Up to none is nothing to do.
        Step::EachMarker(0) => Vec::new(),
        Step::Go(marker) | Step::EachMarker(marker) => at_marker(vm, *marker, VALUE),
        Step::InitSipi(StartAt { cpu, .. }) if u32::from(*cpu) >= vm.cpus => {
            let last = vm.cpus.saturating_sub(1);
            let wrong = Mistake::new(format!("vCPU {cpu} does not exist: the last one is {last}"));
            one(option("cpu"), wrong.label(format!("`vm.cpus` is {}", vm.cpus)))
        }
        Step::Inject(inject) => fault(inject, &[Part::Only]),
        Step::Interrupt(Interrupt { point, with }) => {
            let mut wrong = at_point(point, option("point"), &[REHEARSING]);
            if *with == Interruption::GuestReset {
                wrong.extend(ending(vm, "guest-reset", &["reset", "triple"], option("with")));
            }
            wrong
        }
        Step::KillInUpdate(kill) => kill_in_update(vm, kill),
        Step::KillVmm(kill) => kill_vmm(vm, kill),
        Step::EndBy(EndBy::CgroupKill) if vm.memory_limit.is_none() => {
            let message =
                "cgroup-kill requires vm.memory-limit, which gives the VMM its own cgroup";
            one(VALUE.into(), Mistake::new(message))
        }
        Step::Soak(soak) if soak.in_boot && !vm.paused => {
            let wrong = Mistake::new("the guest has booted when this step begins");
            one(option("in-boot"), wrong.label("requires `vm.paused`"))
        }
        Step::Soak(soak) => times(soak.updates),
        Step::RestartHost(restart) => host_restart(vm, restart),
        Step::Race(commands) => race(vm, commands),
        Step::Serial(_) if vm.serial != SerialKind::Unix => {
            let wrong = Mistake::new("the serial port is connected to a file, not to a socket");
            one(VALUE.into(), wrong.label("requires vm.serial = \"unix\""))
        }
        Step::Limit(limit) if limit.is_relative_to_nothing() => {
            let message = "nproc and fsize cannot be relative to current use";
            one(vec![Part::Only, Part::Only], Mistake::new(message).label("remove the `+`"))
        }
        Step::Binary(_) if !vm.own_binary => {
            one(VALUE.into(), Mistake::new("binary requires vm.own-binary = true"))
        }
        Step::Migrate(update) => {
            let new = update.new_vmm_fault.as_ref();
            let new = new.map(|inject| fault(inject, &option("new-vmm-fault")));
            [migrate(update), mode::check(vm, update), new.unwrap_or_default()].concat()
        }
        _ => Vec::new(),
    }
}

fn host_restart(vm: &Vm, HostRestart { kernel }: &HostRestart) -> Wrong {
    let mut wrong = Wrong::new();
    let lacks = [
        (!vm.memory_file, "the guest's RAM would not outlive", "requires `vm.memory-file`"),
        (vm.memory_limit.is_some(), "the VMM's cgroup does not outlive", "remove vm.memory-limit"),
        (vm.stalled.is_some(), "a stalled log does not outlive", "remove vm.stalled"),
    ];
    for (_, what, label) in lacks.into_iter().filter(|(is, ..)| *is) {
        let mistake = Mistake::new(format!("{what} a restart of the host"));
        wrong.extend(one(VALUE.into(), mistake.label(label)));
    }
    if let Some(mistake) = kernel.as_deref().and_then(not_a_series) {
        wrong.extend(one(option("kernel"), mistake));
    }
    wrong
}

/// What is wrong with a series of kernels.
pub(super) fn not_a_series(kernel: &str) -> Option<Mistake> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let wrong = format!("`kernel` is `{kernel}`: it must be a series such as 6 or 7.3");
    (!kernel.split('.').all(is_number)).then(|| Mistake::new(wrong))
}

fn one(path: Vec<Part>, mistake: Mistake) -> Wrong {
    vec![(path, mistake)]
}

/// The path of an option of the step.
fn option(key: &'static str) -> Vec<Part> {
    vec![Part::Only, Part::Key(key)]
}

fn times(times: u32) -> Wrong {
    match times {
        0 => one(option("times"), Mistake::new("`times` must be 1 or more")),
        _ => Vec::new(),
    }
}

fn fault(Inject { point, action }: &Inject, path: &[Part]) -> Wrong {
    let key = |key| [path, &[Part::Key(key)]].concat();
    let mut wrong = at_point(point, key("point"), &[]);
    if let Err(unknown) = action.parse::<Action>() {
        let text = unknown.to_string();
        let (what, accepted) = text.split_once(": ").unwrap_or((&text, ""));
        wrong.push((key("action"), Mistake::new(what).note(accepted)));
    }
    wrong
}

fn at_point(point: &str, path: Vec<Part>, others: &[&str]) -> Wrong {
    let known: Vec<&str> =
        Point::ALL.iter().map(|point| point.name()).chain(others.iter().copied()).collect();
    match known.contains(&point) {
        true => Vec::new(),
        false => one(path, Mistake::unknown("fail point", point, &known)),
    }
}

fn waiting(vm: &Vm, wait: Wait) -> Wrong {
    let value = vec![Part::Only, Part::Only];
    match wait {
        Wait::Sweeps(_) if guest_images::names().contains(&&*vm.guest) && !vm.counts_sweeps() => {
            let wrong = Mistake::new(format!("the guest `{}` counts no sweeps", vm.guest));
            let wrong = wrong.label("wait for heartbeats, or take another guest");
            one(value, wrong.note(format!("guests that do: `{}`", SWEEPING.join("`, `"))))
        }
        Wait::Marker(marker) => at_marker(vm, marker, &value),
        Wait::Sweeps(_) | Wait::Heartbeats(_) | Wait::SerialLines(_) => Vec::new(),
    }
}

fn at_marker(vm: &Vm, marker: u32, path: &[Part]) -> Wrong {
    let last = vm.markers();
    if (1..=last).contains(&marker) {
        return Vec::new();
    }
    let why = match last {
        0 => "the guest waits at no marker".to_owned(),
        last => format!("the guest waits at markers 1 to {last}, not at {marker}"),
    };
    let label = match marker {
        0 => "markers begin with 1".to_owned(),
        _ => format!("requires `markers={marker}` or more in vm.cmdline"),
    };
    one(path.to_vec(), Mistake::new(why).label(label))
}

/// What `command`, an end that the guest comes to by itself, lacks on the guest's command line.
fn ending(vm: &Vm, command: &str, ends: &[&str], path: Vec<Part>) -> Wrong {
    let ready = vm.markers() > 0 && vm.word("end").is_some_and(|end| ends.contains(&end));
    if ready {
        return Vec::new();
    }
    let wrong = Mistake::new(format!("{command} requires a guest that waits to do that"));
    one(path, wrong.label(format!("requires `markers=1 end={}` in vm.cmdline", ends[0])))
}

fn race(vm: &Vm, commands: &[RaceCommand]) -> Wrong {
    if commands.is_empty() {
        return one(VALUE.into(), Mistake::new("race has no commands"));
    }
    let place = |index| vec![Part::Only, Part::Element(index)];
    let each = commands.iter().enumerate().flat_map(|(index, command)| match command {
        RaceCommand::GuestReset => ending(vm, "guest-reset", &["reset", "triple"], place(index)),
        RaceCommand::GuestExit => ending(vm, "guest-exit", &["exit"], place(index)),
        _ => Vec::new(),
    });
    each.collect()
}

fn migrate(update: &Migrate) -> Wrong {
    let mut wrong = times(update.repeat);
    // The VMM refuses it, which a scenario may expect.
    let may_fail = !matches!(update.expect, Expect::Completed);
    if update.deadline_ms == Some(0) && !may_fail {
        wrong.push((option("deadline-ms"), no_time("deadline-ms")));
    }
    if let Expect::Failed(failure) = &update.expect
        && failure.errno.or(update.command.errno()).is_none()
        && failure.text.is_empty()
    {
        let mistake = Mistake::new("specify the errno or the text that the update fails with");
        let label = "such as `{ failed = { errno = \"ENOSPC\" } }`";
        wrong.push((option("expect"), mistake.label(label)));
    }
    wrong
}

fn kill_vmm(vm: &Vm, kill: &KillVmm) -> Wrong {
    let mut wrong = times(kill.repeat);
    if kill.expect == KillOutcome::Gone && kill.repeat > 1 {
        let mistake = Mistake::new("a VM that is gone cannot be killed again");
        wrong.push((option("times"), mistake));
    }
    if (kill.expect == KillOutcome::Revived) != (vm.keeper == Some(Keeper::On)) {
        let message = "outside updates a VM is revived if, and only if, vm.keeper = \"on\"";
        wrong.push((option("expect"), Mistake::new(message)));
    }
    wrong
}

fn kill_in_update(vm: &Vm, kill: &KillInUpdate) -> Wrong {
    let mut wrong = times(kill.repeat);
    if let Some(point) = &kill.at {
        wrong.extend(at_point(point, option("at"), &[]));
    }
    let mut add = |key, message: &str| wrong.push((option(key), Mistake::new(message)));
    let kills = !kill.signal.asks();
    match kill.expect {
        KillOutcome::Gone if kills && vm.keeper != Some(Keeper::Off) => add(
            "expect",
            "a keeper survives SIGKILL; write vm.keeper = \"off\" or expect = \"revived\"",
        ),
        KillOutcome::Revived if !kills => add("signal", "a VM is revived only after SIGKILL"),
        KillOutcome::Revived if vm.keeper == Some(Keeper::Off) => {
            add("expect", "no revival without a keeper");
        }
        // Otherwise the kill may come before the VMM reads `migrate`; the update then follows the
        // revival.
        KillOutcome::Revived if vm.keeper == Some(Keeper::On) && kill.from != Origin::Setup => {
            add("from", "vm.keeper = \"on\" requires from = \"setup\"");
        }
        _ => {}
    }
    wrong
}
