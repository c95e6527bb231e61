//! The harness, tested from outside.

mod cli;
mod errors;
mod explore;
