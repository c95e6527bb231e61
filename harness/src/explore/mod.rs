//! Sequences of steps nobody has thought of: drawn from a seed, each followed by a reference model,
//! and if one fails, shrunk to a scenario that a person can read.
//!
//! [`grammar`] draws, [`model`] says what must come of each step, [`hunt`] runs, [`shrink`] makes
//! smaller what fails, [`found`] writes it, [`coverage`] tells what was tried.

#[cfg(test)]
mod able;
pub mod coverage;
pub mod expectation;
pub mod found;
pub mod grammar;
pub mod guests;
pub mod hunt;
pub mod judge;
pub mod kind;
pub mod model;
#[cfg(test)]
mod model_tests;
pub mod possible;
pub mod shrink;
pub mod signature;
pub mod simpler;
pub mod vocabulary;
