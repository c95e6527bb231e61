//! Tests that measurements of the real VMM are complete and consistent, and that a soak finds
//! leaks.

use std::process::Command;
use std::time::Duration;

use crate::common;
use cpr_harness::backend::cpr_vmm::CprVmm;
use cpr_harness::observe::patience::Patience;
use cpr_harness::observe::phases::{Phase, Span};
use cpr_harness::run::{Report, Verdict};
use libtest_mimic::Trial;

const MEASURE: &str = r#"
summary = "two updates, measured"
vm = { guest = "pattern", cmdline = "words=1" }
steps = ["boot", { measure = "cpr-exec" }, { measure = "cpr-exec" }, "quit"]
"#;

const SOAK: &str = r#"
summary = "a soak"
vm = { guest = "heartbeat" }
steps = ["boot", { soak = { times = 200, within-ms = 1 } }, "quit"]
"#;

/// The tests of this module.
pub fn trials() -> Vec<Trial> {
    let trial = |name, test: fn()| common::trial(name, common::kvm_missing(), test);
    vec![
        trial("phases_and_blackouts_fit_together", phases_and_blackouts_fit_together),
        trial("floor_stamps_are_in_order", floor_stamps_are_in_order),
        trial("soak_detects_leak_of_failed_updates", soak_detects_leak_of_failed_updates),
    ]
}

fn run(name: &str, scenario: &str, arguments: &[&str]) -> Report {
    let vmm = CprVmm::carried_by(common::binary()).unwrap();
    let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
    // Every update must be measured, also on a busy host.
    let patience = Patience { measure: Duration::from_secs(20), ..Patience::default() };
    common::run(vmm.with(&arguments), name, scenario, patience)
}

fn phases_and_blackouts_fit_together() {
    let report = run("measure", MEASURE, &[]);
    assert_eq!(report.verdict, Verdict::Pass);
    let counts = [report.blackouts.len(), report.phases.len(), report.host_seen.len()];
    assert_eq!(counts, [2, 2, 2]);
    for (blackout, update) in report.blackouts.iter().zip(&report.phases) {
        let phases: Vec<Phase> = update.spans.iter().map(|span| span.phase).collect();
        assert_eq!(phases, Phase::ALL);
        for pair in update.spans.windows(2) {
            assert_eq!(pair[0].end, pair[1].begin, "{pair:?}");
        }
        let all: Duration = update.spans.iter().map(Span::took).sum();
        // The log line has microseconds; a slow pause of the vCPUs comes before it.
        assert!(all + Duration::from_micros(1) >= *blackout, "{update:?}, {blackout:?}");
    }
    assert!(report.host_seen.iter().all(|seen| seen.touch.is_some()), "{:?}", report.host_seen);
}

fn floor_stamps_are_in_order() {
    let bytes = (64 << 20).to_string();
    let arguments = ["floor-probe", "old", &bytes, "2", "4k"];
    let done = Command::new(common::binary()).args(arguments).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let stamps: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    let names = ["main", "adopted", "created", "loaded", "ran"];
    let stamps = names.map(|name| stamps[name].as_u64().unwrap());
    assert!(stamps[0] > 0 && stamps.is_sorted(), "{stamps:?}");
}

fn soak_detects_leak_of_failed_updates() {
    let report = run("soak", SOAK, &["--plant=leak-fd"]);
    assert_eq!(common::failed_checks(&report), ["fds"]);
    assert_eq!(report.failed_step.as_deref(), Some("step 2 (soak)"));
}
