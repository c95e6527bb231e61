//! What the integration tests share: the VMM as a process, a QMP client, and looks from outside.

mod images;
mod patience;
pub mod process;
mod qmp;
mod scene;
pub mod trials;

pub use patience::{PATIENCE, until};
pub use qmp::Qmp;
pub use scene::{Scene, Vm};
