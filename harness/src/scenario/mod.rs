//! Scenario files, and the cases they expand to.

pub mod case;
pub mod choice;
pub mod command_kind;
pub mod describe_failure;
mod deserialize;
mod draw;
pub mod error;
pub mod expansion;
pub mod fault;
mod hint;
pub mod interrupt;
pub mod kill;
pub mod kill_in_update;
pub mod limit;
pub mod matrix;
mod mistake;
pub mod mode;
pub mod parse;
pub mod qemu;
pub mod schema;
mod schema_parts;
pub mod set;
pub mod shard;
pub mod signal;
pub mod size;
pub mod soak;
pub mod stalled;
pub mod step;
pub mod tree;
pub mod update;
mod validate;
pub mod vm;
pub mod write;
#[cfg(test)]
mod wrong;

pub use case::Case;
pub use command_kind::{CommandKind, Errno};
pub use error::ScenarioError;
pub use fault::{HANGING_MS, Inject};
pub use interrupt::{Interrupt, Interruption};
pub use kill::{EndBy, Keeper, KillOutcome, KillVmm};
pub use kill_in_update::{KillInUpdate, Origin};
pub use limit::{Amount, Limit};
pub use mode::{Mode, NewVmm};
pub use qemu::QemuVm;
pub use signal::{EndSignal, SignalAt};
pub use soak::{Disturbance, Setbacks, Soak, SoakUpdate};
pub use stalled::Stalled;
pub use step::{
    BinaryChange, HostRestart, RaceCommand, Repeat, RunTarget, SerialAction, StartAt, Step, Wait,
};
pub use update::{Channel, Expect, Failure, Migrate};
pub use validate::check_made;
pub use vm::{Device, Pages, Ring, Seccomp, SerialKind, Signals, Vm};
