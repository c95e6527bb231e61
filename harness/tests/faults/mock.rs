//! Tests that every check fails when it should: for each fault of the mock exactly one check fails.

mod scenarios;

use std::time::Duration;

use crate::common;
use cpr_harness::backend::mock::{Fault, Mock};
use cpr_harness::check;
use cpr_harness::observe::patience::Patience;
use cpr_harness::run::session::soak::{Pace, Progress};
use cpr_harness::run::verdict::{HARNESS, Kill, MODEL};
use cpr_harness::run::{Verdict, case};
use cpr_harness::scenario::parse;
use cpr_harness::scenario::set::Set;
use libtest_mimic::Trial;

use scenarios::*;

/// A fault, the scenario in which it occurs, and the check that must fail.
struct Row {
    name: &'static str,
    fault: Fault,
    scenario: &'static str,
    check: &'static str,
}

macro_rules! faults {
    ($($name:ident: $fault:ident, $scenario:ident => $check:literal;)*) => {
        const ROWS: &[Row] = &[$(Row {
            name: stringify!($name),
            fault: Fault::$fault,
            scenario: $scenario,
            check: $check,
        }),*];
    };
}

faults! {
    leaked_descriptor: LeakFd, RUNNING => "fds";
    close_on_exec_left_cleared: KeepInheritable, RUNNING => "fds";
    pid_changed: ChangePid, RUNNING => "pid";
    exits_in_update: Die, RUNNING => "pid";
    wrong_executable: OtherExecutable, RUNNING => "executable";
    nothing_executed: PretendToExec, RUNNING => "exec";
    second_vm: SecondVm, RUNNING => "kvm";
    register_lost: LoseRegister, STOPPED => "kvm-state";
    ram_copied: CopyRam, STOPPED => "ram";
    ram_in_other_frames: MoveFrames, STOPPED => "ram";
    a_quarter_of_ram_in_other_frames: MoveSomeFrames, STOPPED => "ram";
    ram_byte_flipped: FlipByte, STOPPED => "ram";
    ram_byte_flipped_below_2_mib: FlipLowByte, STOPPED => "ram";
    run_state_of_a_stopped_guest: LieAfterUpdate, STOPPED => "run_state";
    run_state_of_a_running_guest: LieAfterUpdate, RUNNING => "run_state";
    guest_frozen: Freeze, RUNNING => "progress";
    guest_stopped_for_too_long: Dawdle, RUNNING => "blackout";
    guest_stopped_for_a_refusal: StopToRefuse, REFUSED => "blackout";
    guest_paused_for_a_refusal: PauseToRefuse, REFUSED => "blackout";
    paused_guest_resumed: BeatWhilePaused, STOPPED => "progress";
    guest_exception: GuestException, RUNNING => "damage";
    guest_panic: GuestPanic, RUNNING => "damage";
    guest_triple_fault: TripleFault, RUNNING => "damage";
    guest_rebooted: Reboot, RUNNING => "damage";
    event_missing: DropEvent, RUNNING => "events";
    event_order: ReorderEvents, RUNNING => "events";
    second_client_misses_events: MuteSecondClient, RUNNING => "clients";
    second_greeting: SecondGreeting, RUNNING => "qmp";
    duplicate_reply: AnswerTwice, RUNNING => "qmp";
    line_without_cr: BareNewline, RUNNING => "qmp";
    clock_set_back: BackwardsClock, RUNNING => "qmp";
    query_reply_differs: OtherAnswer, RUNNING => "queries";
    parameters_forgotten: ForgetParameters, RUNNING => "queries";
    fail_point_ignored: PassFailpoints, INJECTED => "outcome";
    stopped_twice_in_a_race: StopTwice, RACING => "events";
    event_missing_in_a_race_that_ends: DropEvent, RACING_TO_THE_END => "events";
    update_refused_in_a_race_that_ends: RefuseInRace, RACING_TO_THE_END => "outcome";
    process_outlives_a_kill: Outlived, KILL => "killed";
    serial_socket_kept: KeepSerialSocket, SERIAL => "gone";
    serial_socket_remade: RemakeSerialSocket, SERIAL => "startup";
    serial_line_skipped: SkipSerialLine, SERIAL => "serial";
    memory_grows: Grow, SOAKED => "memory";
    query_migrate: WrongMigrateStatus, RUNNING => "migrate_status";
    mode_kept: KeepMode, RUNNING => "migrate_status";
    variable_kept: KeepVariable, RUNNING => "leftovers";
    state_descriptor_kept: KeepStateFd, RUNNING => "leftovers";
    child_kept: KeepChild, RUNNING => "leftovers";
    umask_changed: ChangeUmask, RUNNING => "process";
    signal_left_blocked: BlockSignal, RUNNING => "process";
    signal_left_ignored: IgnoreSignal, STOPPED => "process";
    nice_value_raised: Renice, RUNNING => "process";
    limit_lowered: LowerLimit, STOPPED => "process";
    directory_changed: ChangeDirectory, RUNNING => "process";
    process_name_changed: Rename, RUNNING => "process";
    timer_slack_changed: ChangeTimerSlack, RUNNING => "process";
    oom_score_changed: ChangeOomScore, STOPPED => "process";
    mapping_left: StrayMapping, RUNNING => "process";
    nice_value_of_a_vcpu_raised: ReniceVcpu, RUNNING => "process";
    epoll_watches_wrong_descriptor: WaitForAnother, STOPPED => "process";
    lock_left: LeakLock, RUNNING => "process";
    socket_option_changed: ChangeSocketOption, RUNNING => "process";
    variable_added: AddVariable, RUNNING => "process";
    listener_inheritable_from_boot: InheritableListener, RUNNING => "process";
    ram_in_core_dumps: DumpRam, RUNNING => "process";
    vcpu_thread_ids_wrong: LieAboutThreads, RUNNING => "threads";
    pid_file_world_writable: OpenPidFile, RUNNING => "files";
    state_file_world_readable: OpenState, RUNNING => "files";
    mode_of_the_log_changed: ChangeLogMode, RUNNING => "files";
    file_left: StrayFile, STOPPED => "files";
    pid_file_rewritten: RewritePidFile, RUNNING => "startup";
    error_without_command: NamelessError, RUNNING => "error";
    error_empty: EmptyError, KEPT => "error";
    error_without_errno: ErrorWithoutErrno, RUNNING => "error";
    success_for_failure: SuccessForFailure, RUNNING => "outcome";
    process_outlives_the_vmm: Outlived, KILLED => "killed";
    file_outside_the_folder: FileOutside, KILLED => "killed";
    no_second_start: NoSecondStart, KILLED => "killed";
    keeper_dies_with_vmm: NoRevival, REVIVED => "pid";
    revived_in_another_process: OtherHeir, REVIVED => "pid";
    revived_late: SlowRevival, REVIVED => "progress";
    revived_twice: ReviveTwice, REVIVED => "processes";
    revived_with_damage: ReviveDamaged, REVIVED => "damage";
    revived_with_a_byte_flipped: ReviveFlipped, REVIVED_STOPPED => "ram";
    extra_keeper: KeepKeeper, CUT_OFF => "keeper";
    former_pid_in_the_pid_file: KeepOldPid, REVIVED => "startup";
    connections_lost_in_a_revival: LoseClients, REVIVED => "clients";
    run_state_of_a_stopped_guest_in_a_revival: LieAfterRevival, REVIVED_STOPPED => "run_state";
    run_state_of_a_running_guest_in_a_revival: LieAfterRevival, REVIVED => "run_state";
    revival_not_reported: SilentRevival, REVIVED => "reported";
    revival_reported_late: LateRevival, CUT_OFF => "events";
    revival_error_without_pids: NamelessRevival, CUT_OFF => "error";
    former_vmm_outlives_quit: StayAfterQuit, TRANSFERRED => "pid";
    former_vmm_runs_the_guest_too: RunTwice, TRANSFERRED => "processes";
    both_run_after_a_failure: RunUnanswered, TRANSFERRED => "run_state";
    run_state_of_the_former_vmm: KeepRunState, TRANSFERRED => "run_state";
    former_vmm_keeps_its_socket: KeepSocket, TRANSFERRED => "gone";
    event_of_the_former_vmm_missing: DropEvent, TRANSFERRED => "events";
    channel_of_a_transfer_left: KeepChannel, TRANSFERRED => "leftovers";
    other_ram_in_the_new_vmm: CopyRam, TRANSFERRED_STOPPED => "ram";
    descriptor_leaked_in_the_new_vmm: LeakFd, TRANSFERRED => "fds";
    guest_frozen_in_the_new_vmm: Freeze, TRANSFERRED => "progress";
    run_state_in_the_new_vmm: LieAfterUpdate, TRANSFERRED => "run_state";
    run_state_of_a_stopped_guest_in_the_new_vmm: LieAfterUpdate, TRANSFERRED_STOPPED => "run_state";
    another_pid_in_the_new_pid_file: KeepOldPid, TRANSFERRED => "startup";
    socket_kept: KeepSocket, RUNNING => "gone";
    pid_file_kept: KeepPidFile, RUNNING => "gone";
    wrong_shutdown_reason: OtherReason, RUNNING => "gone";
    guest_lacks_common_feature: LackAtBoot, RUNNING => "available";
    hanging: Hang, RUNNING => "step";
    hanging_until_the_watchdog: Hang, WATCHED => "watchdog";
}

/// Short timeouts for faults whose wait cannot succeed.
fn patience(fault: Fault) -> Patience {
    let little = Duration::from_secs(1);
    match fault {
        Fault::Freeze => Patience { beat: little, ..Patience::default() },
        Fault::Hang => Patience { update: little, ..Patience::default() },
        Fault::Outlived | Fault::StayAfterQuit => Patience { end: little, ..Patience::default() },
        _ => Patience::default(),
    }
}

/// Why a fault cannot occur on this host, if so.
fn missing(fault: Fault) -> Option<String> {
    let root = nix::unistd::geteuid().is_root();
    match fault {
        Fault::MoveFrames | Fault::MoveSomeFrames if !root => {
            Some("needs root: only root can see page frame numbers".into())
        }
        Fault::SecondVm => common::kvm_missing(),
        _ => None,
    }
}

/// The tests of this module.
pub fn trials() -> Vec<Trial> {
    let rows = ROWS
        .iter()
        .map(|row| common::trial(row.name, missing(row.fault), || exactly_one_check_fails(row)));
    let others: [(&str, fn()); 12] = [
        ("scenario_sets_blackout_limit", scenario_sets_blackout_limit),
        ("harness_panic_is_a_failure", harness_panic_is_a_failure),
        ("renamed_thread_fails_two_checks", renamed_thread_fails_two_checks),
        ("kills_repeat_until_one_lands", kills_repeat_until_one_lands),
        ("model_is_checked_after_every_step", model_is_checked_after_every_step),
        ("briefly_open_descriptor_passes", briefly_open_descriptor_passes),
        ("every_check_has_a_failing_case", every_check_has_a_failing_case),
        ("resumed_paused_guest_fails_three_checks", resumed_paused_guest_fails_three_checks),
        ("without_a_fault_nothing_fails", without_a_fault_nothing_fails),
        ("vm_survives_kills_at_any_time_of_an_update", vm_survives_kills_at_any_time_of_an_update),
        ("keeper_scenarios_pass_on_the_mock", keeper_scenarios_pass_on_the_mock),
        ("transfer_scenarios_pass_on_the_mock", transfer_scenarios_pass_on_the_mock),
    ];
    rows.chain(others.map(|(name, test)| common::trial(name, None, test))).collect()
}

fn exactly_one_check_fails(row: &Row) {
    let mock = Mock::at(common::binary(), Some(row.fault)).unwrap();
    let report = common::run(mock, row.name, row.scenario, patience(row.fault));
    let mut findings = common::findings(&report);
    if row.fault == Fault::SkipSerialLine {
        // The client may detect it while the next step waits for a line.
        findings = findings.replace("step 4 (wait)", "step 3 (serial)");
    }
    // The check reports such a file but does not remove it.
    for file in findings.split('"').filter(|_| row.fault == Fault::FileOutside) {
        let _ = std::fs::remove_file(file);
    }
    let _stable = common::stable();
    insta::assert_snapshot!(row.name, findings);
    assert_eq!(common::failed_checks(&report), [row.check]);
}

fn scenario_sets_blackout_limit() {
    let failed = |max: u32| {
        let scenario = format!("max-blackout-ms = {max}\n{RUNNING}");
        let mock = Mock::at(common::binary(), None).unwrap();
        let report = common::run(mock, "max-blackout", &scenario, Patience::default());
        common::failed_checks(&report).join(", ")
    };
    assert_eq!([failed(0), failed(10_000)], ["blackout", ""]);
}

/// It must not count as a limitation of the host, which could be overlooked.
fn harness_panic_is_a_failure() {
    struct Panics;
    impl Pace for Panics {
        fn wants(&self, _: u32) -> bool {
            panic!("on purpose")
        }
        fn done(&self, _: Progress) {}
    }
    let scenario = r#"summary = "soaked"
steps = ["boot", { soak = { times = 1, within-ms = 1 } }]"#;
    let cases = parse::parse("test.toml", "test/panic", scenario).unwrap();
    let evidence = tempfile::tempdir().unwrap();
    let mock = Mock::at(common::binary(), None).unwrap();
    let options = common::options(mock, evidence.path(), Patience::default());
    let report = case::run_at(&cases[0], &options, Some(&Panics));
    assert_eq!(common::failed_checks(&report), ["harness"]);
    assert!(common::findings(&report).contains("on purpose"), "{}", common::findings(&report));
    assert_eq!(case::earlier(&cases[0], &options).unwrap().verdict, report.verdict);
}

fn every_check_has_a_failing_case() {
    // Both have a test of their own.
    let rows = ROWS.iter().map(|row| row.check).chain([MODEL, HARNESS]);
    let seen: Vec<&str> = rows.collect();
    let unseen: Vec<&str> = check::names().filter(|name| !seen.contains(name)).collect();
    assert_eq!(unseen, [""; 0]);
}

/// The harness's own expectations follow the model, so a VMM alone cannot make the model's check
/// fail: here a step does nothing, but the model counts it as an update.
fn model_is_checked_after_every_step() {
    let scenario = "summary = 'none'\nsteps = ['boot', { each-marker = 0 }]";
    let mock = Mock::at(common::binary(), None).unwrap();
    let report = common::run(mock, "model", scenario, Patience::default());
    assert_eq!(common::failed_checks(&report), [MODEL]);
}

/// A descriptor that is about to close when a step is checked is not reported missing at the next.
fn briefly_open_descriptor_passes() {
    let mock = Mock::at(common::binary(), Some(Fault::LingerFd)).unwrap();
    let report = common::run(mock, "lingers", RUNNING, Patience::default());
    assert_eq!(common::findings(&report), "nothing failed");
}

/// Every check that covers the run state fails, not just one.
fn resumed_paused_guest_fails_three_checks() {
    let mock = Mock::at(common::binary(), Some(Fault::ResumePaused)).unwrap();
    let report = common::run(mock, "resumed", STOPPED, Patience::default());
    assert_eq!(common::failed_checks(&report), ["events", "run_state", "progress"]);
}

fn renamed_thread_fails_two_checks() {
    let mock = Mock::at(common::binary(), Some(Fault::RenameVcpu)).unwrap();
    let report = common::run(mock, "renamed", RUNNING, Patience::default());
    assert_eq!(common::failed_checks(&report), ["process", "threads"]);
}

fn without_a_fault_nothing_fails() {
    let scenarios = [
        (RUNNING, 1),
        (REFUSED, 0),
        (STOPPED, 1),
        (KILLED, 0),
        (REVIVED, 1),
        (REVIVED_STOPPED, 0),
        (CUT_OFF, 2),
        (GONE, 1),
        (ENDED, 0),
        (INJECTED, 1),
        (RACING, 1),
        (RACING_TO_THE_END, 0),
        (KILL, 0),
        (SERIAL, 1),
        (TRANSFERRED, 2),
        (TRANSFERRED_STOPPED, 1),
    ];
    for (scenario, updates) in scenarios {
        let report = {
            let mock = Mock::at(common::binary(), None).unwrap();
            common::run(mock, "good", scenario, Patience::default())
        };
        assert_eq!(common::findings(&report), "nothing failed");
        assert_eq!(report.updates, updates);
    }
}

fn keeper_scenarios_pass_on_the_mock() {
    let themes = ["keeper/", "lifecycle/kill", "endurance/killed-at-every-point"];
    pass_on_the_mock(&themes, 20);
}

/// Those in which the new VMM has more vCPUs are left out: the mock has none that are real.
fn transfer_scenarios_pass_on_the_mock() {
    pass_on_the_mock(&["transfer/"], 15);
}

/// Runs the scenarios of these themes whose guests the mock can simulate.
fn pass_on_the_mock(themes: &[&str], at_least: usize) {
    let (mut passed, mut cases) = (0, Set::embedded().unwrap().cases);
    cases.retain(|case| themes.iter().any(|theme| case.name.starts_with(theme)));
    cases.retain(|case| !case.name.contains("new=other-cpus"));
    cases.retain(|case| case.vm.guest == "pattern" || case.vm.guest == "heartbeat");
    cases.retain(|case| !case.vm.cmdline.contains("end="));
    for case in &cases {
        let mock = Mock::at(common::binary(), None).unwrap();
        let report = common::run_case(mock, case, Patience::default());
        match report.verdict {
            Verdict::Pass => passed += 1,
            Verdict::Ignored(why) => assert!(why.starts_with("the mock"), "{}: {why}", case.name),
            _ => panic!("{}: {}", case.name, common::findings(&report)),
        }
    }
    assert!(passed > at_least, "{passed} of {}", cases.len());
}

/// A case that must kill an update continues until a kill falls inside one.
fn kills_repeat_until_one_lands() {
    let mock = Mock::at(common::binary(), None).unwrap();
    let report = common::run(mock, "early", KILLED_TOO_EARLY, Patience::default());
    assert_eq!(common::findings(&report), "nothing failed");
    assert!(report.kills.len() > 2 && report.kills.iter().any(Kill::landed), "{report:?}");
}

fn vm_survives_kills_at_any_time_of_an_update() {
    let mock = Mock::at(common::binary(), None).unwrap();
    let report = common::run(mock, "anywhere", CUT_ANYWHERE, Patience::default());
    assert_eq!(common::findings(&report), "nothing failed");
    assert!(report.kills.len() >= 16, "{report:?}");
    let survived = report.kills.iter().filter(|kill| kill.revived).count();
    assert_eq!(survived, report.revivals.len());
    assert!(report.revivals.iter().all(|revived| revived.pid != revived.former));
}
