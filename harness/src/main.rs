//! The harness as one file to copy to a host: it carries the VMM and the guests.

use std::process::ExitCode;

fn main() -> ExitCode {
    cpr_harness::carry::dispatch().unwrap_or_else(cpr_harness::cli::main)
}
