//! Every check fails when it should, and says so well.

mod builds;
mod common;
mod explored;
mod guests;
mod measured;
mod mock;
mod points;

use std::process::ExitCode;

use cpr_harness::run::orphans;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    // A VM that continues in another process is to be a child of this one.
    orphans::let_in();
    let trials = mock::trials()
        .into_iter()
        .chain(guests::trials())
        .chain(points::trials())
        .chain(measured::trials())
        .chain(builds::trials())
        .chain(explored::trials());
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}
