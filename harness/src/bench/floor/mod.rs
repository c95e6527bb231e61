//! The floor: the least that an update by `exec` can cost here.
//!
//! A program that does nothing else: the binary executes itself, opens `/dev/kvm`, makes a VM of the
//! same size on the memfd that it has kept, sets all state, and enters the guest once with
//! `immediate_exit`. There is no old VM. Its end costs as much as the making, but need not be waited
//! for (our VMM leaves it to a helper process), so it is no part of what an update must cost; neither
//! is the pause, nor the guest's way back into its pages.
//!
//! Three processes, so that none of them has more to clean up than it must: [`Stage::State`] saves
//! the state of a VM as after power-on, and ends; [`Stage::Old`] keeps that and RAM's memfd over
//! `exec`; [`Stage::New`] is what it becomes.

mod new;
mod old;
mod state;

use std::process::{Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use super::Cell;
use crate::carry;
use crate::observe::phases::Phase;
use crate::report::stdout::say;

/// First argument that makes the binary the probe.
pub const PROBE: &str = "floor-probe";

/// What went wrong in the probe.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    /// The harness said something else than it does.
    #[error("the arguments of {PROBE} are not understood: {0:?}")]
    Arguments(Vec<String>),
    /// A system call.
    #[error("{what}: {source}")]
    System {
        /// Which.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// KVM did something else than it was asked to.
    #[error("KVM_RUN with immediate_exit came back with {0}")]
    Ran(String),
    /// KVM does not take back what it has given.
    #[error("KVM_SET_MSRS refused MSR {0:#x}, which KVM had accepted in the VM before")]
    Msr(u32),
    /// The state does not have the length that it says.
    #[error("the saved state ends too early")]
    Short,
}

fn system<E: Into<std::io::Error>>(what: &'static str) -> impl Fn(E) -> ProbeError {
    move |source| ProbeError::System { what, source: source.into() }
}

fn kvm(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> ProbeError {
    move |error| ProbeError::System {
        what,
        source: std::io::Error::from_raw_os_error(error.errno()),
    }
}

/// One run of it, in nanoseconds since before `execve`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamps {
    main: u64,
    adopted: u64,
    created: u64,
    loaded: u64,
    ran: u64,
}

impl Stamps {
    /// All of it, in milliseconds.
    pub fn total_ms(&self) -> f64 {
        self.ran as f64 / 1e6
    }

    /// What our VMM's phases correspond to, in milliseconds.
    pub fn phases_ms(&self) -> [(Phase, f64); 5] {
        let between = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
        [
            (Phase::Exec, between(0, self.main)),
            (Phase::Adopt, between(self.main, self.adopted)),
            (Phase::Build, between(self.adopted, self.created)),
            (Phase::Load, between(self.created, self.loaded)),
            (Phase::FirstRun, between(self.loaded, self.ran)),
        ]
    }
}

/// Runs the probe once for a machine like that.
pub fn probe(cell: Cell) -> Result<Stamps, String> {
    let binary = carry::own_binary().map_err(|e| format!("cannot find my own binary: {e}"))?;
    let mut command = Command::new(binary);
    command.args([PROBE, "old", &cell.memory.0.to_string(), &cell.cpus.to_string()]);
    command.arg(cell.pages.as_str()).stdin(Stdio::null());
    let output = command.output().map_err(|e| format!("cannot start the floor probe: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the floor probe failed ({}): {}", output.status, said.trim_end()));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("the floor probe said nothing that can be read: {e}"))
}

/// The probe as a program; `arguments` begin with the stage.
pub fn main(arguments: &[String]) -> ExitCode {
    // First of all: what is measured begins before `main`.
    let began_ns = new::monotonic_ns();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["state", cpus] => number(cpus).and_then(state::print),
        ["old", memory, cpus, pages] => {
            number(memory).and_then(|bytes| old::run(bytes, number(cpus)?, pages))
        }
        ["new", ram, state, memory, cpus, t0] => new::arguments([ram, state, memory, cpus, t0])
            .and_then(|kept| kept.run(began_ns))
            .map(|stamps| say(serde_json::to_string(&stamps).unwrap_or_default())),
        _ => Err(ProbeError::Arguments(arguments.to_vec())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("floor probe: {e}");
            ExitCode::FAILURE
        }
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, ProbeError> {
    text.parse().map_err(|_| ProbeError::Arguments(vec![text.to_owned()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phases_add_up_to_the_whole() {
        let stamps =
            Stamps { main: 1, adopted: 3, created: 1_000_000, loaded: 1_500_000, ran: 2_000_000 };
        let sum: f64 = stamps.phases_ms().iter().map(|(_, ms)| ms).sum();
        assert!((sum - stamps.total_ms()).abs() < 1e-9);
    }

    #[test]
    fn other_arguments_are_an_error() {
        assert_eq!(main(&["old".into()]), ExitCode::FAILURE);
        assert_eq!(main(&["old".into(), "1M".into(), "1".into(), "4k".into()]), ExitCode::FAILURE);
    }
}
