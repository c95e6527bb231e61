//! Tests that a live update of a VMM keeps everything a guest and its operator rely on.
//!
//! The harness sees a VMM only as a process with a command line, a QMP socket, file descriptors
//! and RAM. [`scenario`] defines the steps, [`backend`] starts the VMM, [`observe`] records what
//! is visible from outside, [`check`] defines what must hold after every step, [`run`] executes
//! the cases and [`report`] presents the results. [`conform`] compares two VMMs, [`matrix`] updates
//! several builds to each other, [`catalogue`] plants known bugs in our VMM, [`explore`] runs
//! random sequences of steps, [`mod@bench`] measures blackouts, [`soak`] runs updates continuously,
//! [`doctor`] checks what the host supports,
//! [`gateway`] serves QMP for a VMM that does not,
//! [`lab`] runs the harness in an emulated host. [`model`] predicts what each step makes of a VM, and
//! [`process`] starts and ends processes.

pub mod backend;
pub mod bench;
pub mod carry;
pub mod catalogue;
pub mod check;
pub mod cli;
pub mod conform;
pub mod coverage;
pub mod doctor;
pub mod explore;
pub mod gateway;
pub mod kernels;
pub mod lab;
pub mod matrix;
pub mod model;
pub mod multicall;
pub mod observe;
pub mod process;
pub mod report;
pub mod restricted;
pub mod run;
pub mod scenario;
pub mod soak;

/// The git revision this is built from, with ", modified" if the sources differ from it, or "unknown".
pub const REVISION: &str = env!("CPR_REVISION");

/// The version, with the revision in parentheses.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("CPR_REVISION"), ")");
