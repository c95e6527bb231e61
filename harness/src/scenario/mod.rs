//! What to do with a VM: scenario files, and the cases they expand to.

pub mod error;
pub mod matrix;
pub mod model;
pub mod parse;
pub mod set;
pub mod size;

pub use error::ScenarioError;
pub use model::{
    Case, Channel, CommandKind, Errno, Expect, Failure, Migrate, Pages, RaceCommand, RunWish,
    SerialKind, SerialWish, Step, Vm, Wait,
};
