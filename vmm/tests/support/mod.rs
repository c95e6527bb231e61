//! Code shared by the integration tests: the VMM as a process, a QMP client, and views of `/proc`.

mod beats;
mod images;
mod patience;
pub mod process;
mod qmp;
mod refusal;
mod scene;
pub mod trials;

pub use beats::Beats;
pub use patience::{PATIENCE, until};
pub use qmp::Qmp;
pub use refusal::{refusal, snapshot};
pub use scene::{Scene, Vm};
