//! Tests of the harness from outside.

mod again;
mod bench;
mod cli;
mod errors;
mod explore;
mod figures;
mod front_door;
mod full;
mod module_circles;
mod out_of_tree;
mod plain_english;
mod program;
mod promises;
mod qemu;
mod readme;
mod reports;
mod shards;
mod skew;
mod soak;
mod terminal;
mod timers;
