//! Tests guests that are migrated with their RAM (mode `normal`), as seen from outside.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
#[path = "../support/mod.rs"]
mod support;
// The steps that all modes have in common.
#[allow(dead_code)]
#[path = "../transfer/steps.rs"]
mod transfer;

mod copying;
mod failures;
mod moves;
mod settling;
mod snapshots;
mod steps;

use std::process::ExitCode;

use support::trials::{self, kvm, trial, trials};

use copying::*;
use failures::*;
use moves::*;
use settling::*;
use snapshots::*;

fn main() -> ExitCode {
    let mut tests = trials![kvm();
        stopped_guest_stays_stopped,
        paused_option_keeps_the_guest_stopped,
        guest_moves_twice,
        deferred_guest_arrives,
        private_ram_moves,
        unused_ram_stays_unused,
        no_keeper_waits_for_private_ram,
        ram_file_is_filled,
        moved_guest_can_be_reset_and_updated,
        sent_guest_continues_here,
        sent_guest_can_be_reset_here,
        ram_keeps_its_pattern,
        reset_while_copying_copies_all_again,
        bandwidth_is_limited_and_can_be_raised,
        guest_that_writes_faster_than_it_is_copied_runs_on,
        cancelled_copy_leaves_the_guest,
        stopping_the_guest_completes_the_copy,
        bad_parameters_are_refused,
        other_machine_is_refused_by_name,
        channels_are_refused_by_name,
        wrong_peers_leave_the_guest,
        foreign_and_silent_peers_are_dropped,
        cut_connections_leave_the_guest,
        killed_old_process_is_continued_by_its_keeper,
        kills_at_any_moment_lose_no_guest,
        end_of_the_old_process_before_the_commit_leaves_a_stopped_guest,
        keeper_and_new_process_do_not_both_run_the_guest,
        late_process_does_not_get_the_guest,
        keeper_does_not_revive_a_sent_guest,
        snapshot_continues_here_and_there,
        snapshot_keeps_the_pattern,
        snapshot_fills_a_ram_file,
        snapshot_of_a_stopped_guest,
        snapshot_is_sparse_and_private,
        snapshot_replaces_another,
        damaged_snapshots_are_refused_by_name,
        state_without_ram_is_refused,
        failed_snapshot_leaves_the_old_one,
    ];
    for cpus in [1, 2, 4] {
        let name = format!("running_guest_moves_with_{cpus}_vcpus");
        tests.push(trial(name, kvm(), move || running_guest_moves(cpus)));
    }
    for point in ["publish", "helper", "pause", "paused", "save", "channel", "commit"] {
        for action in ["errno=EIO", "panic", "segv"] {
            let name = format!("{action}_at_{point}_leaves_the_guest");
            tests.push(trial(name, kvm(), move || failure_here_leaves_the_guest(point, action)));
        }
    }
    for point in ["read", "serial", "vcpus", "commit"] {
        for action in ["errno=EIO", "panic", "segv"] {
            let name = format!("{action}_at_{point}_of_the_new_process_leaves_the_guest");
            tests.push(trial(name, kvm(), move || failure_there_leaves_the_guest(point, action)));
        }
    }
    trials::run(tests)
}
