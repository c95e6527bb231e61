//! What to do with a VM: scenario files, and the cases they expand to.

pub mod error;
pub mod fault;
pub mod interrupt;
pub mod kill_in_update;
pub mod limit;
pub mod matrix;
pub mod model;
pub mod parse;
pub mod set;
pub mod signal;
pub mod size;
pub mod what_is_wrong;

pub use error::ScenarioError;
pub use fault::Inject;
pub use interrupt::{Interrupt, Interruption};
pub use kill_in_update::KillInUpdate;
pub use limit::{Amount, Limit};
pub use model::{
    BinaryChange, Case, Channel, CommandKind, Errno, Expect, Failure, Migrate, Pages, RaceCommand,
    RunWish, Seccomp, Step, Vm, Wait,
};
pub use signal::{EndSignal, SignalAt};
