//! Compares two VMMs by running the same scenarios on both.

pub mod compare;
pub mod differences;
pub mod table;
