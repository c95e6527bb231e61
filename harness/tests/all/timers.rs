//! Tests that the guest `timer` itself notices a slow timer: the audit of the KVM state, which reports
//! them first, is off.

use crate::program::harness;

#[test]
fn guest_notices_slow_timer() {
    let folder = tempfile::tempdir().unwrap();
    let case = "inside/timer[cpus=1,test=oneshot]";
    let args = ["run", "--filter", case, "--no-audits", "--vmm-arg=--plant=slow-timer"];
    let (code, told) = harness(folder.path(), &args);
    assert_eq!(code, Some(1), "{told}");
    let found = |finding| told.contains(&format!(": {finding}: 0x"));
    assert!(told.contains("damage: vCPU 0") && (found("slow") || found("late")), "{told}");
}
