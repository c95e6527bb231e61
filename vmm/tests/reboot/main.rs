//! Tests guests that are saved and continued by a later process (`cpr-reboot`), as seen from outside.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
#[path = "../support/mod.rs"]
mod support;
// The steps that all modes have in common.
#[allow(dead_code)]
#[path = "../transfer/steps.rs"]
mod transfer;

mod continuing;
mod crashes;
mod failures;
mod ownership;
mod steps;

use std::process::ExitCode;

use support::trials::{self, kvm, trial, trials};

use continuing::*;
use crashes::*;
use failures::*;
use ownership::*;

fn main() -> ExitCode {
    let mut tests = trials![kvm();
        ram_keeps_its_pattern,
        stopped_guest_stays_stopped,
        paused_option_keeps_the_guest_stopped,
        guest_is_saved_many_times,
        channel_list_is_accepted,
        deferred_state_is_loaded,
        ram_file_crosses_updates_and_transfers,
        serial_port_continues,
        continued_guest_can_be_reset,
        saved_guest_continues_here,
        saved_guest_can_be_reset_here,
        guest_runs_in_one_process_only,
        old_state_is_stale,
        ram_file_is_locked,
        existing_ram_file_boots,
        ram_that_would_be_lost_is_refused,
        removed_ram_file_is_refused,
        channels_are_refused_by_name,
        full_disk_is_refused_before_the_guest_stops,
        too_large_ram_file_is_refused,
        unusable_ram_files_are_refused_by_name,
        damaged_states_are_refused,
        rescue_options_leave_the_saved_guest,
        other_machines_are_refused_by_name,
        changed_ram_is_refused,
        failed_save_leaves_the_guest,
        crashed_save_leaves_the_guest,
        hanging_save_leaves_the_guest,
        keeper_continues_a_guest_that_was_not_saved,
        keeper_does_not_revive_a_saved_guest,
        saved_state_survives_the_process,
        killed_loader_leaves_the_state,
        end_signal_does_not_spoil_the_save,
        queued_commands_wait_for_the_save,
        disconnected_client_does_not_stop_the_save,
    ];
    for cpus in [1, 2, 4] {
        let name = format!("running_guest_continues_with_{cpus}_vcpus");
        tests.push(trial(name, kvm(), move || running_guest_continues(cpus)));
    }
    let name = "full_file_system_is_refused";
    tests.push(trial(name, as_root(), full_file_system_is_refused));
    trials::run(tests)
}

fn as_root() -> trials::Missing {
    let root = nix::unistd::geteuid().is_root();
    kvm().or_else(|| (!root).then(|| "needs root, for a mount namespace".to_owned()))
}
