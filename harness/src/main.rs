//! The harness as a single executable to copy to a host, with the VMM and the guests inside.

use std::process::ExitCode;

fn main() -> ExitCode {
    cpr_harness::multicall::dispatch().unwrap_or_else(cpr_harness::cli::main)
}
