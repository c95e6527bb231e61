//! Tests that every fail point is covered: the VMM's fail points, the harness's list of them and
//! the matrices of the scenarios that iterate over them are the same.

use std::process::{Child, Command as Program, Stdio};
use std::sync::Arc;

use crate::common;
use cpr_harness::observe::patience::Patience;
use cpr_harness::observe::qmp::{Command, Qmp};
use cpr_harness::run::update::fault;
use cpr_harness::scenario::fault::POINTS;
use cpr_harness::scenario::interrupt::REHEARSING;
use cpr_harness::scenario::set::Set;
use cpr_harness::scenario::{Case, Inject, Interrupt, Step};
use libtest_mimic::Trial;

/// The tests of this module.
pub fn trials() -> Vec<Trial> {
    let own = common::trial("points_are_those_of_the_vmm", common::kvm_missing(), of_the_vmm);
    let scenarios = || {
        for scenario in [
            "fault/every-edge",
            "fault/signal",
            "race/at-every-phase",
            "keeper/at-every-point",
            "endurance/killed-at-every-point",
        ] {
            every_point_has_its_case(scenario);
        }
    };
    vec![own, common::trial("points_have_their_cases", None, scenarios)]
}

fn of_the_vmm() {
    let folder = tempfile::tempdir().unwrap();
    let (kernel, socket) = (folder.path().join("guest"), folder.path().join("qmp"));
    std::fs::write(&kernel, guest_images::guest("heartbeat").unwrap().elf).unwrap();
    let vmm = Program::new(common::binary())
        .args(["vmm", "--memory", "16M", "--paused", "--kernel"])
        .arg(&kernel)
        .arg("--qmp")
        .arg(format!("unix:{}", socket.display()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut vmm = Ends(vmm);
    let mut qmp =
        Qmp::connect(&socket, Patience::default().greeting, Arc::new(|_, _| {}), || None).unwrap();
    let points = fault::points(&mut qmp);
    qmp.execute(Command::plain("quit")).unwrap();
    vmm.0.wait().unwrap();
    assert_eq!(points.unwrap(), POINTS);
}

/// A process that does not outlive the test.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn every_point_has_its_case(scenario: &str) {
    let cases = Set::embedded().unwrap().cases;
    let of_it = |case: &&Case| case.name.split('[').next() == Some(scenario);
    let mut points: Vec<String> = Vec::new();
    for point in cases.iter().filter(of_it).flat_map(|case| case.steps.iter().filter_map(point)) {
        if !points.iter().any(|known| known == point) && point != REHEARSING {
            points.push(point.to_owned());
        }
    }
    assert_eq!(points, POINTS, "{scenario}");
}

fn point(step: &Step) -> Option<&str> {
    match step {
        Step::Inject(Inject { point, .. }) | Step::Interrupt(Interrupt { point, .. }) => {
            Some(point)
        }
        _ => None,
    }
}
