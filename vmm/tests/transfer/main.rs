//! Tests transfers of a guest from one VMM process to another (`cpr-transfer`), as seen from
//! outside.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
#[path = "../support/mod.rs"]
mod support;

mod failures;
mod late;
mod moves;
mod steps;

use std::process::ExitCode;

use support::trials::{self, kvm, trial, trials};

use failures::*;
use late::*;
use moves::*;

fn main() -> ExitCode {
    let mut tests = trials![kvm();
        stopped_guest_stays_stopped,
        paused_option_keeps_the_guest_stopped,
        guest_moves_twice,
        guest_moves_through_a_file,
        serial_client_stays_connected,
        other_serial_port_is_opened,
        moved_guest_can_be_reset_and_updated,
        other_machine_is_refused_by_name,
        channels_are_refused_by_name,
        death_of_the_old_process_does_not_matter,
        keeper_does_not_revive_a_moved_guest,
        keeper_continues_a_guest_that_was_not_claimed,
        late_process_does_not_get_the_guest,
        crashed_handover_leaves_the_guest,
        failure_before_the_offer_leaves_the_guest,
        cancelled_transfer_leaves_the_guest,
        ended_transfer_ends_the_new_process,
        foreign_and_silent_peers_are_dropped,
        wrong_peers_leave_the_guest,
        kills_at_any_moment_lose_no_guest,
        end_signals_end_a_waiting_process,
        end_signal_before_the_claim_leaves_the_guest,
        refused_migrate_starts_no_keeper,
        guest_that_is_stopped_while_it_is_awaited_stays_stopped,
        descriptors_that_do_not_fit_are_closed,
    ];
    for cpus in [1, 2] {
        let name = format!("running_guest_moves_with_{cpus}_vcpus");
        tests.push(trial(name, kvm(), move || running_guest_moves(cpus)));
    }
    for keeper in ["on", "update", "off"] {
        let name = format!("old_process_does_not_run_a_claimed_guest_with_keeper_{keeper}");
        tests.push(trial(name, kvm(), move || old_process_does_not_run_a_claimed_guest(keeper)));
        let name = format!("new_process_is_not_continued_without_its_guest_with_keeper_{keeper}");
        let test = move || new_process_is_not_continued_without_its_guest(keeper);
        tests.push(trial(name, kvm(), test));
    }
    for point in ["ram", "machine", "create-vcpus", "read", "vcpus", "commit"] {
        for action in ["sigkill", "panic", "errno=EIO"] {
            let name = format!("{action}_at_{point}_leaves_the_guest");
            tests.push(trial(name, kvm(), move || failure_leaves_the_guest(point, action)));
        }
    }
    trials::run(tests)
}
