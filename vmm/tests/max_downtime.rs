//! Tests the limit of the time that an update may stop the guest, from its stop to its run.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::process::ExitCode;

use cpr_qmp::command::Command;
use cpr_qmp::event::EventKind;
use cpr_qmp::migration::MigrationStatus;
use cpr_qmp::run_state::RunState;
use support::trials::{self, kvm, trials};
use support::{Qmp, Scene, Vm};

fn main() -> ExitCode {
    trials::run(trials![kvm();
        completed_says_how_long_the_guest_was_stopped,
        slow_command_is_undone_and_the_last_completed_update_still_counts,
        waiting_for_a_deferred_state_counts,
    ])
}

const GUEST: &str = "--kernel DIR/heartbeat --memory 16M";
/// Enough for any update on a busy host, in milliseconds.
const AMPLE: u64 = 60_000;

/// Updates, and returns what the event `MIGRATION` `completed` says.
fn downtime_of_update(vm: &Vm<'_>, qmp: &mut Qmp) -> Option<u64> {
    let command = vm.command_again("file:DIR/state");
    qmp.begin_update(&command, &vm.state_file()).expect("the update is accepted");
    qmp.event("MIGRATION completed", |event| match event {
        EventKind::Migration { status: MigrationStatus::Completed, x_downtime_us } => {
            Some(x_downtime_us)
        }
        _ => None,
    })
}

fn completed_says_how_long_the_guest_was_stopped() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    let us = downtime_of_update(&vm, &mut qmp).expect("the guest ran");
    let ms = qmp.migration().downtime.expect("query-migrate says it, too");
    assert_eq!(us / 1000, ms, "{us} us");
    assert!(us > 0 && us < AMPLE * 1000, "{us} us");
    qmp.done(Command::Stop);
    assert_eq!(downtime_of_update(&vm, &mut qmp), None);
}

/// Waits until the update is undone because of its limit.
fn is_undone(qmp: &mut Qmp) {
    qmp.event("MIGRATION failed", |event| {
        (event.migration_status() == Some(MigrationStatus::Failed)).then_some(())
    });
    qmp.event("RESUME", |event| (event == EventKind::Resume).then_some(()));
    assert_eq!(qmp.run_state(), RunState::Running);
    let error = qmp.migration().error_desc.expect("a failure says why");
    assert!(error.ends_with("x-max-downtime passed"), "{error}");
}

fn slow_command_is_undone_and_the_last_completed_update_still_counts() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    vm.update(&mut qmp);
    qmp.rehearsal = false;
    qmp.max_downtime = Some(1000);
    let words = vm.command_again("file:DIR/state").join(" ");
    let slow = scene.script("slow", &format!("#!/bin/sh\nsleep 1.5\nexec {words}\n"));
    qmp.begin_update(&[slow], &vm.state_file()).expect("the update is accepted");
    is_undone(&mut qmp);
    qmp.max_downtime = Some(1);
    let command = vm.command_again("file:DIR/state");
    let refused = qmp.begin_update(&command, &vm.state_file()).expect_err("it is expected");
    assert!(refused.desc.contains("as long as the last one did"), "{refused}");
    qmp.max_downtime = Some(AMPLE);
    vm.update(&mut qmp);
}

fn waiting_for_a_deferred_state_counts() {
    let scene = Scene::new();
    let mut vm = scene.start(GUEST);
    let mut qmp = vm.qmp();
    qmp.max_downtime = Some(1000);
    qmp.begin_update(&vm.command_again("defer"), &vm.state_file()).expect("it is accepted");
    is_undone(&mut qmp);
    qmp.max_downtime = None;
    vm.update(&mut qmp);
}
