//! Explores random sequences of steps: draws them from a seed, checks each against a reference
//! model, and shrinks one that fails to a readable scenario.
//!
//! [`grammar`] draws, [`model`](crate::model) predicts the result of each step, [`search`] runs, [`shrink`] shrinks
//! what fails, [`found`] writes it, [`coverage`] reports what was tried.

pub mod coverage;
pub mod expectation;
pub mod found;
#[cfg(test)]
mod full_backend;
pub mod grammar;
pub mod kind;
#[cfg(test)]
mod model_tests;
pub mod possible;
pub mod search;
pub mod shrink;
pub mod simpler;
pub mod vocabulary;
