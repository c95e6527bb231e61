//! The processes that the harness starts: how they begin, what they inherit, and how they end, with
//! it at the latest.

pub mod cgroup;
pub mod child;
pub mod environment;
pub mod filtered;
pub mod notify;
pub mod orphans;
pub mod program;
pub mod signals;
pub mod stalled;
pub mod vm;

pub use environment::{EnvironmentError, RlimitError};
