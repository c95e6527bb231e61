//! Telling people how it went.

pub mod terminal;
