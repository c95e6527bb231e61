//! Telling people how it went.

pub mod choice;
pub mod errors;
pub mod paint;
pub mod stdout;
pub mod terminal;
