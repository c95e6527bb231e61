//! Tests what a guest can do to the VMM through its devices, and which devices it has.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cpr_qmp::command::Command;
use cpr_qmp::event::EventKind;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use support::trials::{self, kvm, trials};
use support::{Qmp, Scene, until};

fn main() -> ExitCode {
    trials::run(trials![kvm();
        endless_guest_resets_are_throttled,
        guest_needs_the_test_device_to_end_the_vmm,
        test_device_is_part_of_the_machine,
    ])
}

const GUEST: &str = "--kernel DIR/heartbeat --memory 16M";

/// Counts RESET events until `end`.
fn resets(qmp: &mut Qmp, end: Instant) -> usize {
    let mut count = 0;
    while Instant::now() < end {
        qmp.done(Command::QueryName);
        let events = qmp.take_events().into_iter();
        count += events.filter(|event| matches!(event, EventKind::Reset { .. })).count();
        std::thread::park_timeout(Duration::from_millis(5));
    }
    count
}

fn endless_guest_resets_are_throttled() {
    for end in ["triple", "reset"] {
        let scene = Scene::new();
        // The guest ends at its first marker.
        let mut vm = scene
            .start(&format!("{GUEST} --cmdline end={end} --paused --log info --log-file DIR/log"));
        let mut qmp = vm.qmp();
        qmp.done(Command::Cont);
        qmp.event("RESET", |event| matches!(event, EventKind::Reset { .. }).then_some(()));
        // The first resets are not throttled.
        until("the resets to be slowed down", || {
            let log = fs::read_to_string(scene.path("log")).expect("the log exists");
            if log.contains("guest_resets_slowed_down") { Ok(()) } else { Err(log.len()) }
        });
        resets(&mut qmp, Instant::now() + Duration::from_millis(1));
        let slow = resets(&mut qmp, Instant::now() + Duration::from_secs(2));
        assert!((1..=10).contains(&slow), "{end}: {slow} resets in 2 s");
        qmp.done(Command::Stop);
        assert!(matches!(qmp.run_state(), RunState::Paused | RunState::Prelaunch));
        qmp.done(Command::Cont);
        vm.update(&mut qmp);
        // No reset is lost in the update.
        qmp.event("RESET", |event| matches!(event, EventKind::Reset { .. }).then_some(()));
        let log = fs::read_to_string(scene.path("log")).expect("the log exists");
        let told = log.matches("guest_triple_fault").count();
        let expected = if end == "triple" { 1..=40 } else { 0..=0 };
        assert!(expected.contains(&told), "{end}: {told} in {log}");
        qmp.done(Command::SystemReset);
        qmp.done(Command::Quit);
        assert_eq!(vm.end().code(), Some(0));
    }
}

fn guest_needs_the_test_device_to_end_the_vmm() {
    for (option, ended) in [("", false), ("--test-device off", false), ("--test-device on", true)] {
        let scene = Scene::new();
        let mut vm = scene.start(&format!("{GUEST} --cmdline end=exit --paused {option}"));
        let mut qmp = vm.qmp();
        qmp.done(Command::Cont);
        if ended {
            assert_eq!(vm.end().code(), Some(1), "the guest writes 0");
            continue;
        }
        let until = Instant::now() + Duration::from_millis(500);
        assert_eq!(resets(&mut qmp, until), 0);
        assert_eq!(qmp.run_state(), RunState::Running);
    }
}

fn test_device_is_part_of_the_machine() {
    for (old, new) in [("on", "off"), ("off", "on")] {
        let scene = Scene::new();
        let mut vm = scene.start(&format!("{GUEST} --test-device {old}"));
        let mut qmp = vm.qmp();
        let mut command = vm.command_again("file:DIR/state");
        let at = command.iter().position(|word| word == old).expect("the log exists");
        command[at] = new.to_owned();
        let refused = qmp.begin_update(&command, &vm.state_file()).unwrap_err();
        let told = refused.desc;
        assert!(told.contains("test device") && told.contains("--test-device"), "{told}");
        qmp.rehearsal = false;
        assert_eq!(qmp.update(&command, &vm.state_file()), MigrationStatus::Failed);
        let told = qmp.migration().error_desc.unwrap_or_default();
        assert!(told.contains("test device") && told.contains("--test-device"), "{told}");
        vm.update(&mut qmp);
        assert_eq!(qmp.run_state(), RunState::Running);
    }
}
