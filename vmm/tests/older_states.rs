//! Tests states saved by an older binary, which knew fewer MSRs.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
mod support;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use ciborium::Value;
use cpr_qmp::command::Command;
use cpr_vmm::machine::SECTIONS;
use cpr_vmm::state::{STATE_VERSION, SavedState};
use support::Scene;
use support::trials::{self, kvm, trials};

const MACHINE: &str = "--memory 16M --cpus 2 --serial null";
const CPUS: u32 = 2;
const VMM: &str = env!("CARGO_BIN_EXE_cpr-vmm");

fn main() -> ExitCode {
    trials::run(trials![kvm();
        next_update_saves_msrs_missing_from_an_older_state,
    ])
}

/// Returns the state in `file`, with the MSRs of its vCPUs changed by `change`.
fn with_vcpus(file: &Path, mut change: impl FnMut(&mut Vec<Value>)) -> SavedState {
    let bytes = fs::read(file).expect("an update has written it");
    let (mut state, _) = SavedState::decode(&bytes).expect("the file is a state");
    let known = SECTIONS.into_iter().find(|known| known.name == "vcpu").unwrap();
    let (name, version) = (known.name, known.newest);
    for vcpu in 0..CPUS {
        let mut section: Value = state.take(name, vcpu, version).expect("the state has that vCPU");
        let fields = section.as_map_mut().expect("a map of fields");
        let msrs = fields.iter_mut().find(|(key, _)| key.as_text() == Some("msrs"));
        change(msrs.expect("a list of MSRs").1.as_array_mut().expect("a list"));
        state.put(name, vcpu, version, &section);
    }
    state
}

/// Returns the MSRs that were saved for each vCPU.
fn msrs(file: &Path) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    with_vcpus(file, |msrs| {
        let index = |msr: &Value| {
            let bytes = msr.as_bytes().expect("a structure of KVM's");
            u32::from_ne_bytes(bytes[..4].try_into().expect("the structure begins with the index"))
        };
        all.push(msrs.iter().map(index).collect());
    });
    all
}

fn next_update_saves_msrs_missing_from_an_older_state() {
    let scene = Scene::new();
    let mut vm = scene.start(&format!("--kernel DIR/heartbeat --paused {MACHINE}"));
    let mut qmp = vm.qmp();
    vm.update(&mut qmp);
    let all = msrs(&vm.state_file());
    let older = with_vcpus(&vm.state_file(), |msrs| drop(msrs.drain(5..msrs.len() - 5)));
    qmp.done(Command::Quit);
    vm.end();
    scene.write("older", older.encode(STATE_VERSION).0);
    let ram = fs::File::create(scene.path("ram")).expect("the folder is ours");
    ram.set_len(16 << 20).expect("a sparse file");

    let incoming = "--paused --incoming file:DIR/older --incoming-ram DIR/ram";
    let mut vm = scene.start(&format!("{MACHINE} {incoming}"));
    let mut qmp = vm.qmp();
    // First by this process, then by its successor.
    for _ in 0..2 {
        let words = format!("{} --qmp unix:DIR/qmp {MACHINE} --incoming file:DIR/state", VMM);
        qmp.update(&scene.words(&words), &vm.state_file());
        assert_eq!(msrs(&vm.state_file()), all);
    }
}
