//! Proves that a live update of a VMM keeps everything a guest and its operator rely on.
//!
//! The harness sees a VMM only as a process with a command line, a QMP socket, file descriptors
//! and RAM. [`scenario`] says what to do, [`backend`] how to start a VMM, [`observe`] what can be
//! seen from outside, [`check`] what must hold after every step, [`run`] does it all, [`report`]
//! tells. [`conform`] compares two VMMs, [`matrix`] updates builds of one to each other,
//! [`catalogue`] plants known bugs in ours, [`explore`] tries what nobody has thought of, [`bench`]
//! measures, [`soak`] goes on without end, [`doctor`] looks at the host.

pub mod audit;
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
pub mod lowered;
pub mod matrix;
pub mod observe;
pub mod report;
pub mod run;
pub mod scenario;
pub mod soak;
