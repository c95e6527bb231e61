//! The harness, tested from outside.

mod bench;
mod cli;
mod errors;
mod soak;
