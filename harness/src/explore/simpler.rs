//! Proposes simpler VMs and steps.

use crate::scenario::{
    Channel, CommandKind, Inject, Interrupt, Interruption, Migrate, Pages, RaceCommand, RunTarget,
    SerialKind, Soak, Step, Vm, Wait,
};

/// Returns VMs that differ from `vm` in one property, which has its default.
pub fn simpler_vms(vm: &Vm) -> Vec<Vm> {
    let default = Vm::default();
    let all = [
        Vm { guest: default.guest.clone(), cmdline: String::new(), ..vm.clone() },
        Vm { cmdline: String::new(), ..vm.clone() },
        Vm { cpus: default.cpus, ..vm.clone() },
        Vm { memory: default.memory, ..vm.clone() },
        Vm { pages: Pages::Small, ..vm.clone() },
        Vm { serial: SerialKind::File, ..vm.clone() },
        Vm { paused: false, ..vm.clone() },
        Vm { own_binary: false, ..vm.clone() },
        Vm { seccomp: None, ..vm.clone() },
        Vm { stalled: None, ..vm.clone() },
        Vm { share: true, ..vm.clone() },
    ];
    // A guest that talks on the serial port needs its socket.
    let sensible = |simpler: &Vm| simpler.guest != "serial" || simpler.serial == SerialKind::Unix;
    all.into_iter().filter(|simpler| simpler != vm && sensible(simpler)).collect()
}

/// Returns `steps` with one of them simplified or split.
pub fn simpler_steps(steps: &[Step]) -> Vec<Vec<Step>> {
    let mut all = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        for parts in simpler(step).into_iter().filter(|parts| cost(parts) < cost_of(step)) {
            all.push([&steps[..at], &parts, &steps[at + 1..]].concat());
        }
    }
    all
}

/// Estimates the complexity of `steps` for a reader.
pub fn cost(steps: &[Step]) -> usize {
    steps.iter().map(cost_of).sum()
}

fn cost_of(step: &Step) -> usize {
    const STEP: usize = 10;
    match step {
        Step::Migrate(migrate) => {
            let Migrate { mode, new_vmm, command, channel, rehearsal, deadline_ms, .. } = migrate;
            let unusual = [
                *command != CommandKind::Good,
                *channel != Channel::File,
                rehearsal.is_some(),
                deadline_ms.is_some(),
                !mode.is_default(),
                !new_vmm.is_default(),
            ];
            // Any bad command will do, but the most common one is the most familiar.
            let rare = usize::from(unusual[0] && *command != CommandKind::Enoent);
            let unusual = 2 * unusual.into_iter().filter(|is| *is).count();
            STEP * migrate.repeat as usize + unusual + rare
        }
        Step::Bring(_) => STEP + 1,
        Step::Inject(inject) => STEP + usize::from(inject.action != SIMPLE_FAULT),
        Step::Wait(Wait::Sweeps(_)) => STEP + 1,
        Step::Race(commands) => (STEP + 5) * commands.len() + 1,
        Step::Interrupt(_) => 3 * STEP,
        Step::EachMarker(n) => (STEP + 1) * *n as usize + 1,
        Step::Soak(soak) => 3 * STEP * soak.updates as usize,
        Step::KillInUpdate(_) | Step::Signal(_) => 2 * STEP,
        _ => STEP,
    }
}

const SIMPLE_FAULT: &str = "errno=EIO";

fn simpler(step: &Step) -> Vec<Vec<Step>> {
    let update = || Step::Migrate(Migrate::default());
    match step {
        Step::Migrate(migrate) => {
            updates(migrate).into_iter().map(|update| vec![Step::Migrate(update)]).collect()
        }
        Step::Inject(inject) => {
            vec![vec![Step::Inject(Inject { action: SIMPLE_FAULT.to_owned(), ..inject.clone() })]]
        }
        Step::Race(commands) => {
            let without = |at: usize| [&commands[..at], &commands[at + 1..]].concat();
            let fewer = (0..commands.len()).map(without).filter(|rest| !rest.is_empty());
            let fewer = fewer.map(|rest| vec![Step::Race(rest)]);
            [commands.iter().filter_map(|c| alone(*c)).collect()].into_iter().chain(fewer).collect()
        }
        Step::Interrupt(Interrupt { with, .. }) => {
            let parts = [Some(update()), outside(*with)].into_iter().flatten().collect::<Vec<_>>();
            let reverse = parts.iter().rev().cloned().collect();
            vec![vec![update()], parts, reverse]
        }
        Step::Soak(soak) => {
            let one = Step::Soak(Soak { updates: 1, ..soak.clone() });
            let paused = [Step::Stop, update(), Step::Cont];
            vec![vec![update()], vec![update(), update()], paused.into(), vec![one]]
        }
        Step::EachMarker(n) => {
            let apart = (0..*n).map(|_| update()).collect();
            vec![vec![update()], apart, vec![Step::EachMarker(1)]]
        }
        Step::KillInUpdate(_) => vec![vec![update()]],
        Step::Bring(RunTarget::Running) => vec![vec![Step::Cont]],
        Step::Bring(RunTarget::Stopped) => vec![vec![Step::Stop]],
        Step::Wait(Wait::Sweeps(_)) => vec![vec![Step::Wait(Wait::Heartbeats(50))]],
        _ => Vec::new(),
    }
}

/// The command of a race as a separate step.
fn alone(command: RaceCommand) -> Option<Step> {
    match command {
        RaceCommand::Migrate => Some(Step::Migrate(Migrate::default())),
        RaceCommand::Reset => Some(Step::Reset),
        RaceCommand::Stop => Some(Step::Stop),
        RaceCommand::Cont => Some(Step::Cont),
        RaceCommand::Quit => Some(Step::Quit),
        RaceCommand::GuestReset | RaceCommand::GuestExit => None,
    }
}

/// An interruption of an update as a separate step.
fn outside(with: Interruption) -> Option<Step> {
    match with {
        Interruption::Stop => Some(Step::Stop),
        Interruption::Cont => Some(Step::Cont),
        Interruption::Reset => Some(Step::Reset),
        Interruption::Quit => Some(Step::Quit),
        _ => None,
    }
}

/// Simpler updates, simplest first.
fn updates(migrate: &Migrate) -> Vec<Migrate> {
    let enoent = CommandKind::Enoent;
    vec![
        Migrate::default(),
        Migrate { channel: Channel::File, ..migrate.clone() },
        Migrate { repeat: 1, ..migrate.clone() },
        Migrate { repeat: migrate.repeat.saturating_sub(1).max(1), ..migrate.clone() },
        Migrate { rehearsal: None, ..migrate.clone() },
        Migrate { deadline_ms: None, ..migrate.clone() },
        Migrate { command: enoent, channel: Channel::File, ..migrate.clone() },
        Migrate { command: enoent, rehearsal: Some(false), ..Migrate::default() },
    ]
}
