//! Tests that every check fails when it should, with a good message.

mod builds;
mod common;
mod explored;
mod guests;
mod measured;
mod mock;
mod points;
mod texts;

use std::process::ExitCode;

use cpr_harness::process::orphans;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    // A VM that continues in another process must become a child of this one.
    orphans::become_subreaper();
    let trials = mock::trials()
        .into_iter()
        .chain(guests::trials())
        .chain(points::trials())
        .chain(measured::trials())
        .chain(builds::trials())
        .chain(explored::trials());
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
