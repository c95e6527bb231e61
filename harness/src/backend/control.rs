//! How to control a VMM that does not speak QMP. The harness serves QMP in its place (see
//! [`gateway`](crate::gateway)), so that scenarios and checks need not know.

use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use cpr_qmp::run_state::RunState;

use super::Channels;
use crate::scenario::Mode;

/// Why a VMM did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {what}: {why}")]
pub struct ControlError {
    /// What was tried: verb and object, as in `move the VM to /path`.
    pub what: String,
    /// Why it failed.
    pub why: String,
}

impl ControlError {
    /// An error of `what` because of `why`.
    pub fn new(what: impl Into<String>, why: impl ToString) -> Self {
        Self { what: what.into(), why: why.to_string() }
    }
}

/// What a VMM reports on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// The guest has been stopped.
    Stopped,
    /// The guest runs again.
    Resumed,
    /// A pass over RAM begins, in an update that copies it.
    Pass(u64),
    /// The VM was reset.
    Reset,
    /// The guest has powered off or panicked; the process is about to end.
    PoweredOff,
}

/// An update to a VMM in another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// How RAM gets there.
    pub mode: Mode,
    /// Where the other VMM waits.
    pub channels: Channels,
    /// Milliseconds that the last pass over RAM may take, if RAM is copied.
    pub downtime_limit_ms: u64,
}

/// One process of a VMM. Methods are called from several threads, and each must have a deadline.
pub trait Control: Send + Sync {
    /// Waits until the process takes requests, and has its VM unless it waits for one.
    fn ready(&self) -> Result<(), ControlError>;

    /// The run state: `Running`, `Paused`, or `Prelaunch` before the first start.
    fn state(&self) -> Result<RunState, ControlError>;

    /// Stops the running guest; returns once `state` shows it.
    fn stop(&self) -> Result<(), ControlError>;

    /// Resumes the stopped guest, or starts one in `Prelaunch`; returns once `state` shows it.
    fn cont(&self) -> Result<(), ControlError>;

    /// Resets the VM.
    fn reset(&self) -> Result<(), ControlError>;

    /// Presses the power button.
    fn power_down(&self) -> Result<(), ControlError>;

    /// Sends an NMI to every vCPU.
    fn nmi(&self) -> Result<(), ControlError>;

    /// Tells the process to end.
    fn quit(&self) -> Result<(), ControlError>;

    /// The host threads of the vCPUs, in order.
    fn vcpu_threads(&self) -> Result<Vec<i32>, ControlError>;

    /// Moves the VM to another process. Returns once the VM is there or, if the channel is a file, is
    /// saved; or once it is certain that it stays here and is back in its former run state.
    fn send(&self, to: &Move) -> Result<(), ControlError>;

    /// Waits for a VM on `channels` and takes it over, in the run state that it had. Returns once it is
    /// here, or once it is certain that it will not come.
    fn receive(&self, channels: &Channels) -> Result<(), ControlError>;

    /// Waits for the next report of the VMM, up to `limit`; disconnected once the process has ended.
    fn next(&self, limit: Duration) -> Result<Happened, RecvTimeoutError>;
}
