//! The harness, tested from outside.

mod cli;
mod errors;
mod front_door;
mod shards;
mod skew;
mod terminal;
