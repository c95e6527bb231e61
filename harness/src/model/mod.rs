//! The reference model: what each step makes of a VM, and whether the VM is there.

pub mod guests;
pub mod judge;
pub mod reference;

pub use reference::{Model, Run, State};
