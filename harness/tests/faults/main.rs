//! Every check fails when it should, and says so well.

mod common;
mod guests;
mod mock;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let trials = mock::trials().into_iter().chain(guests::trials()).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
