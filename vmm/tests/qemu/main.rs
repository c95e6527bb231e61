//! Compares a live QEMU with our VMM over QMP.

// Other tests use the rest of it.
#[allow(dead_code, unused_imports)]
#[path = "../support/mod.rs"]
mod support;

mod differences;
mod peer;
mod schema;
mod steps;
mod transcript;
mod wire;

use std::process::ExitCode;

use support::trials::{self, kvm, trial};

fn main() -> ExitCode {
    let missing = || kvm().or_else(peer::qemu_missing);
    let mut tests = vec![trial("our_schema_is_a_subset", missing(), schema::ours_is_a_subset)];
    for (name, steps) in steps::TRANSCRIPTS {
        let compare = || transcript::compare(name, steps);
        tests.push(trial(format!("transcript::{name}"), missing(), compare));
    }
    tests.push(trial("every_listed_difference_names_a_step", None, differences::each_names_a_step));
    trials::run(tests)
}
