//! The floor: the minimum cost of an update by `exec` on this host.
//!
//! Measured by a probe that does nothing else: the binary executes itself, opens `/dev/kvm`,
//! creates a VM of the same size on the memfd that it kept, sets all state, and enters the guest
//! once with `immediate_exit`. There is no old VM: tearing one down costs as much as creating it,
//! but an update need not wait for that (our VMM leaves it to a helper process). The pause and the
//! page faults of the resumed guest are not included either.
//!
//! It uses three processes, to minimize what each has to clean up: stage `state` saves the state of
//! a VM as after power-on, and exits; stage `old` keeps that state and the memfd of RAM across
//! `exec`; stage `new` is what it executes.

mod new;
mod old;
mod state;

use std::process::{Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use super::Cell;
use crate::carry;
use crate::observe::phases::Phase;
use crate::report::stdout::say;

/// First argument that makes the binary run as the probe.
pub const PROBE: &str = "floor-probe";

/// Errors of the probe.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    /// The arguments are not those that the harness passes.
    #[error("invalid arguments of {PROBE}: {0:?}")]
    Arguments(Vec<String>),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// The call.
        what: &'static str,
        /// The cause.
        source: std::io::Error,
    },
    /// `KVM_RUN` did not return with `EINTR`.
    #[error("KVM_RUN with immediate_exit returned {0} instead of EINTR")]
    Ran(String),
    /// KVM rejected an MSR that it accepted when the state was saved.
    #[error("KVM_SET_MSRS rejected MSR {0:#x}, which it accepted in the saving VM")]
    Msr(u32),
    /// The saved state is shorter than its contents require.
    #[error("the saved state is truncated")]
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

/// Time stamps of one run of the probe, in nanoseconds since just before `execve`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamps {
    main: u64,
    adopted: u64,
    created: u64,
    loaded: u64,
    ran: u64,
}

impl Stamps {
    /// Returns the total time in milliseconds.
    pub fn total_ms(&self) -> f64 {
        self.ran as f64 / 1e6
    }

    /// Returns the times of the corresponding phases of our VMM, in milliseconds.
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

/// Runs the probe once for a machine of this size.
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
        .map_err(|e| format!("cannot parse the output of the floor probe: {e}"))
}

/// Runs the probe as a program; `arguments` begin with the stage.
pub fn main(arguments: &[String]) -> ExitCode {
    // Taken first: the measured time starts before `main`.
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
    fn phases_add_up_to_the_total() {
        let stamps =
            Stamps { main: 1, adopted: 3, created: 1_000_000, loaded: 1_500_000, ran: 2_000_000 };
        let sum: f64 = stamps.phases_ms().iter().map(|(_, ms)| ms).sum();
        assert!((sum - stamps.total_ms()).abs() < 1e-9);
    }

    #[test]
    fn rejects_invalid_arguments() {
        assert_eq!(main(&["old".into()]), ExitCode::FAILURE);
        assert_eq!(main(&["old".into(), "1M".into(), "1".into(), "4k".into()]), ExitCode::FAILURE);
    }
}
