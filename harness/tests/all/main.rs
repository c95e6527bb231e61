//! The harness, tested from outside: it notices what it should, and says so well.

mod cli;
mod common;
mod faults;
mod guests;
