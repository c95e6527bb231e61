//! What is simpler than a VM or a step.

use crate::scenario::{
    Channel, CommandKind, Inject, Interrupt, Interruption, Migrate, Pages, RunWish, SerialKind,
    Step, Storm, Vm, Wait,
};

/// VMs that differ from `vm` in one thing, which is as by default.
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
        Vm { share: true, ..vm.clone() },
    ];
    // A guest that talks on the serial port needs its socket.
    let sensible = |simpler: &Vm| simpler.guest != "serial" || simpler.serial == SerialKind::Unix;
    all.into_iter().filter(|simpler| simpler != vm && sensible(simpler)).collect()
}

/// `steps` with one of them simpler.
pub fn simpler_steps(steps: &[Step]) -> Vec<Vec<Step>> {
    let mut all = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        for simpler in simpler(step).into_iter().filter(|simpler| simpler != step) {
            let mut steps = steps.to_vec();
            steps[at] = simpler;
            all.push(steps);
        }
    }
    all
}

fn simpler(step: &Step) -> Vec<Step> {
    let update = Step::Migrate(Migrate::default());
    match step {
        Step::Migrate(migrate) => updates(migrate).into_iter().map(Step::Migrate).collect(),
        Step::Inject(inject) => {
            let as_any =
                |action: &str| Step::Inject(Inject { action: action.to_owned(), ..inject.clone() });
            // Not from one of these to the other and back.
            let simple = inject.action == "errno=EIO";
            if simple { Vec::new() } else { vec![as_any("errno=EIO")] }
        }
        Step::Race(commands) => {
            let without = |at: usize| [&commands[..at], &commands[at + 1..]].concat();
            let fewer = (0..commands.len()).map(without).filter(|rest| !rest.is_empty());
            fewer.map(Step::Race).chain([update]).collect()
        }
        Step::Interrupt(Interrupt { with, .. }) if *with != Interruption::Quit => vec![update],
        Step::Storm(storm) => {
            let one = Step::Storm(Storm { updates: 1, ..storm.clone() });
            vec![update, one]
        }
        Step::EachMarker(n) if *n > 1 => vec![update, Step::EachMarker(1)],
        Step::EachMarker(_) | Step::KillInUpdate(_) => vec![update],
        Step::Bring(RunWish::Running) => vec![Step::Cont],
        Step::Bring(RunWish::Stopped) => vec![Step::Stop],
        Step::Wait(Wait::Sweeps(_)) => vec![Step::Wait(Wait::Heartbeats(50))],
        _ => Vec::new(),
    }
}

/// Simplest first.
fn updates(migrate: &Migrate) -> Vec<Migrate> {
    let expect = migrate.expect.clone();
    vec![
        Migrate::default(),
        Migrate { channel: Channel::File, ..migrate.clone() },
        Migrate { repeat: 1, ..migrate.clone() },
        Migrate { rehearsal: None, ..migrate.clone() },
        Migrate { deadline_ms: None, ..migrate.clone() },
        Migrate {
            command: CommandKind::Enoent,
            channel: Channel::File,
            rehearsal: Some(false),
            deadline_ms: None,
            expect,
            repeat: 1,
        },
    ]
}
