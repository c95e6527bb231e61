//! Scenario files, and the cases they expand to.

pub mod choice;
pub mod command_kind;
pub mod describe_failure;
mod draw;
pub mod error;
pub mod expansion;
pub mod fault;
pub mod interrupt;
pub mod kill;
pub mod kill_in_update;
pub mod limit;
pub mod matrix;
pub mod model;
pub mod parse;
pub mod schema;
mod schema_parts;
pub mod set;
pub mod shard;
pub mod signal;
pub mod size;
pub mod soak;
pub mod stalled;
mod validate;
pub mod write;

pub use command_kind::{CommandKind, Errno};
pub use error::ScenarioError;
pub use fault::Inject;
pub use interrupt::{Interrupt, Interruption};
pub use kill::{EndBy, Keeper, KillOutcome, KillVmm};
pub use kill_in_update::{KillInUpdate, Origin};
pub use limit::{Amount, Limit};
pub use model::{
    BinaryChange, Case, Channel, Expect, Failure, Migrate, Pages, RaceCommand, Repeat, RunTarget,
    Seccomp, SerialAction, SerialKind, Signals, StartAt, Step, Vm, Wait,
};
pub use signal::{EndSignal, SignalAt};
pub use soak::{Disturbance, Setbacks, Soak, SoakUpdate};
pub use stalled::Stalled;
pub use validate::check_made;
