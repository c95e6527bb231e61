//! Tests that faults of a real guest are reported correctly.

use std::time::Duration;

use crate::common;
use cpr_harness::backend::cpr_vmm::CprVmm;
use cpr_harness::observe::patience::Patience;
use cpr_harness::run::Verdict;
use libtest_mimic::Trial;

/// The guest fails after its marker, on the last of its vCPUs.
const SCENARIO: &str = r#"
summary = "a guest that fails on purpose"
vm = { guest = "faulty", cpus = 2, cmdline = "markers=1 fault=[FAULT]" }
steps = [
  "boot",
  { wait = { marker = 1 } },
  { migrate = {} },
  { go = 1 },
  { wait = { heartbeats = 1000000000 } },
]
"#;

/// The guest's fault, and the check that must report it.
const FAULTS: &[(&str, &str)] = &[
    ("divide", "damage"),
    ("ud", "damage"),
    ("gp", "damage"),
    ("page", "damage"),
    ("panic", "damage"),
    ("triple", "damage"),
    ("hang", "progress"),
];

/// The tests of this module.
pub fn trials() -> Vec<Trial> {
    let trial = |(fault, check): &'static (&str, &str)| {
        let name = format!("guest_{fault}");
        common::trial(&name, common::kvm_missing(), || failing_guest_is_reported(fault, check))
    };
    FAULTS.iter().map(trial).collect()
}

fn failing_guest_is_reported(fault: &str, check: &str) {
    let little = Duration::from_secs(2);
    let patience = match fault {
        "hang" => Patience { beat: little, guest: little, ..Patience::default() },
        _ => Patience::default(),
    };
    let vmm = CprVmm::carried_by(common::binary()).unwrap();
    let report = common::run(vmm, fault, &SCENARIO.replace("[FAULT]", fault), patience);
    let mut stable = insta::Settings::clone_current();
    stable.add_filter(r"RIP 0x\w+", "RIP [RIP]");
    stable.add_filter("rip=\"0x[0-9a-f]+\"", "rip=[RIP]");
    stable.add_filter(r"heartbeat \d+", "heartbeat [N]");
    stable.add_filter(r"\d{4}-\d\d-\d\dT\S+Z", "[TIME]");
    let _stable = stable.bind_to_scope();
    let Verdict::Fail(findings) = &report.verdict else { panic!("{:?}", report.verdict) };
    // Other checks may fail, too: a triple fault is followed by a reset.
    let finding = findings.iter().find(|finding| finding.check == check);
    let finding = finding.unwrap_or_else(|| panic!("{check} did not fail, but {findings:?}"));
    insta::assert_snapshot!(fault, finding.message);
}
