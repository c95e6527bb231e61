//! Every check fails when it should: the mock misbehaves in one way, exactly one check notices.

use std::time::Duration;

use crate::common;
use cpr_harness::backend::mock::{Fault, Mock};
use cpr_harness::check;
use cpr_harness::run::Patience;

/// An update of a running guest, and one that fails.
const RUNNING: &str = r#"
summary = "running"
steps = [
  "boot",
  { migrate = {} },
  { migrate = { command = "enoent", expect = { failed = {} } } },
  "quit",
]
"#;

/// The same of a stopped guest.
const STOPPED: &str = r#"
summary = "stopped"
steps = [
  "boot",
  "stop",
  { migrate = {} },
  { migrate = { command = "enoent", expect = { failed = {} } } },
  "cont",
  "quit",
]
"#;

/// An update of which only counts that the guest goes on.
const KEPT: &str = r#"
summary = "kept"
steps = ["boot", { migrate = { command = "enoent", expect = "kept" } }, { migrate = { expect = "kept" } }]
"#;

/// Less time than the mock takes when it hangs.
const WATCHED: &str = r#"
summary = "watched"
deadline_ms = 300
steps = ["boot", { migrate = {} }]
"#;

macro_rules! faults {
    ($($name:ident: $fault:ident, $scenario:ident => $check:literal;)*) => {
        $(
            #[test]
            fn $name() {
                let fault = Fault::$fault;
                if let Some(need) = unmet(fault) {
                    panic!("cannot be seen here: needs {need}");
                }
                let mock = Mock::at(common::binary(), Some(fault)).unwrap();
                let report = common::run(mock, stringify!($name), $scenario, patience(fault));
                let _stable = common::stable();
                insta::assert_snapshot!(stringify!($name), common::told(&report));
                assert_eq!(common::failed_checks(&report), [$check]);
            }
        )*

        /// The checks seen failing above.
        const SEEN: &[&str] = &[$($check),*];
    };
}

faults! {
    leaked_descriptor: LeakFd, RUNNING => "fds";
    close_on_exec_left_cleared: KeepInheritable, RUNNING => "fds";
    another_pid: ChangePid, RUNNING => "pid";
    dead: Die, RUNNING => "pid";
    another_executable: OtherExecutable, RUNNING => "executable";
    second_vm: SecondVm, RUNNING => "kvm";
    ram_copied: CopyRam, STOPPED => "ram";
    ram_in_other_frames: MoveFrames, STOPPED => "ram";
    ram_byte_flipped: FlipByte, STOPPED => "ram";
    run_state_of_a_stopped_guest: LieAfterUpdate, STOPPED => "run_state";
    run_state_of_a_running_guest: LieAfterUpdate, RUNNING => "run_state";
    guest_frozen: Freeze, RUNNING => "progress";
    paused_guest_resumed: BeatWhilePaused, STOPPED => "progress";
    guest_exception: GuestException, RUNNING => "damage";
    guest_panic: GuestPanic, RUNNING => "damage";
    guest_triple_fault: TripleFault, RUNNING => "damage";
    guest_rebooted: Reboot, RUNNING => "damage";
    event_missing: DropEvent, RUNNING => "events";
    event_order: ReorderEvents, RUNNING => "events";
    second_client_hears_less: MuteSecondClient, RUNNING => "clients";
    query_migrate: WrongMigrateStatus, RUNNING => "migrate_status";
    mode_kept: KeepMode, RUNNING => "migrate_status";
    variable_kept: KeepVariable, RUNNING => "leftovers";
    state_descriptor_kept: KeepStateFd, RUNNING => "leftovers";
    child_kept: KeepChild, RUNNING => "leftovers";
    umask_changed: ChangeUmask, RUNNING => "neighbours";
    signal_left_blocked: BlockSignal, RUNNING => "neighbours";
    signal_left_ignored: IgnoreSignal, STOPPED => "neighbours";
    nice_value_raised: Renice, RUNNING => "neighbours";
    limit_lowered: LowerLimit, STOPPED => "neighbours";
    directory_left: ChangeDirectory, RUNNING => "neighbours";
    process_name_taken: Rename, RUNNING => "neighbours";
    pid_file_written_again: RewritePidFile, RUNNING => "startup";
    error_without_command: NamelessError, RUNNING => "error";
    error_without_a_word: EmptyError, KEPT => "error";
    error_without_errno: ErrorWithoutErrno, RUNNING => "error";
    success_for_failure: SuccessForFailure, RUNNING => "outcome";
    socket_kept: KeepSocket, RUNNING => "gone";
    hanging: Hang, RUNNING => "step";
    hanging_until_the_watchdog: Hang, WATCHED => "watchdog";
}

/// Little where it is waited in vain.
fn patience(fault: Fault) -> Patience {
    let little = Duration::from_secs(1);
    match fault {
        Fault::Freeze => Patience { beat: little, ..Patience::default() },
        Fault::Hang => Patience { update: little, ..Patience::default() },
        _ => Patience::default(),
    }
}

/// Page frames are shown to root only, and VMs need KVM.
fn unmet(fault: Fault) -> Option<&'static str> {
    let kvm = || std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    match fault {
        Fault::MoveFrames => (!nix::unistd::geteuid().is_root()).then_some("root"),
        Fault::SecondVm => (!kvm()).then_some("/dev/kvm"),
        _ => None,
    }
}

#[test]
fn every_check_has_been_seen_failing() {
    let unseen: Vec<&str> =
        check::ALL.iter().map(|check| check.name).filter(|name| !SEEN.contains(name)).collect();
    assert_eq!(unseen, [""; 0]);
}

/// Not one check but all that look at it.
#[test]
fn a_paused_guest_that_is_resumed_is_noticed_from_all_sides() {
    let mock = Mock::at(common::binary(), Some(Fault::ResumePaused)).unwrap();
    let report = common::run(mock, "resumed", STOPPED, Patience::default());
    assert_eq!(common::failed_checks(&report), ["events", "run_state", "progress"]);
}

#[test]
fn without_a_fault_nothing_fails() {
    for scenario in [RUNNING, STOPPED] {
        let report = {
            let mock = Mock::at(common::binary(), None).unwrap();
            common::run(mock, "good", scenario, Patience::default())
        };
        assert_eq!(common::told(&report), "nothing failed");
        assert_eq!(report.updates, 1);
    }
}
