//! States as an older binary has saved them, which knew less.

// Parts of it are for other tests.
#[allow(dead_code, unused_imports)]
mod support;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use ciborium::Value;
use cpr_qmp::command::Command;
use cpr_vmm::machine::LOADABLE_SECTIONS;
use cpr_vmm::state::SavedState;
use support::Scene;
use support::trials::{self, kvm, trials};

const MACHINE: &str = "--memory 16M --cpus 2 --serial null";
const CPUS: u32 = 2;
const VMM: &str = env!("CARGO_BIN_EXE_cpr-vmm");

fn main() -> ExitCode {
    trials::run(trials![kvm();
        msrs_that_an_older_binary_did_not_save_are_saved_by_the_next_update,
    ])
}

/// The state in `file`, with its vCPUs changed.
fn with_vcpus(file: &Path, mut change: impl FnMut(&mut Vec<Value>)) -> SavedState {
    let bytes = fs::read(file).expect("an update has left it");
    let (mut state, _) = SavedState::decode(&bytes).expect("it is a state");
    let (name, version) = LOADABLE_SECTIONS.into_iter().find(|(name, _)| *name == "vcpu").unwrap();
    for vcpu in 0..CPUS {
        let mut section: Value = state.take(name, vcpu, version).expect("it has that vCPU");
        let fields = section.as_map_mut().expect("a map of fields");
        let msrs = fields.iter_mut().find(|(key, _)| key.as_text() == Some("msrs"));
        change(msrs.expect("a list of MSRs").1.as_array_mut().expect("a list"));
        state.put(name, vcpu, version, &section);
    }
    state
}

/// The MSRs that were saved of each vCPU.
fn msrs(file: &Path) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    with_vcpus(file, |msrs| {
        let index = |msr: &Value| {
            let bytes = msr.as_bytes().expect("a structure of KVM's");
            u32::from_ne_bytes(bytes[..4].try_into().expect("it begins with the index"))
        };
        all.push(msrs.iter().map(index).collect());
    });
    all
}

fn msrs_that_an_older_binary_did_not_save_are_saved_by_the_next_update() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("--kernel DIR/heartbeat --paused {MACHINE}"));
    let mut qmp = vm.qmp();
    vm.update(&mut qmp);
    let all = msrs(&vm.state_file());
    let older = with_vcpus(&vm.state_file(), |msrs| drop(msrs.drain(5..msrs.len() - 5)));
    qmp.done(Command::Quit);
    vm.end();
    scene.write("older", older.encode().0);
    let ram = fs::File::create(scene.path("ram")).expect("it is in a folder of ours");
    ram.set_len(16 << 20).expect("a sparse file");

    let incoming = "--paused --incoming file:DIR/older --incoming-ram DIR/ram";
    let mut vm = scene.start(&format!("{MACHINE} {incoming}"));
    let mut qmp = vm.qmp();
    // In this process at its first update, and in the next one at its own.
    for _ in 0..2 {
        let words = format!("{} --qmp unix:DIR/qmp {MACHINE} --incoming file:DIR/state", VMM);
        qmp.update(&scene.words(&words), &vm.state_file());
        assert_eq!(msrs(&vm.state_file()), all);
    }
}
