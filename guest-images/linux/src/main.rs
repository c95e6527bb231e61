//! The first process of a Linux guest: it reports in the same mailbox as the other guests what an
//! update damages in a running kernel.
//!
//! Every vCPU has a thread pinned to it that sends heartbeats and compares the clocks, and threads
//! that check memory and the FPU's registers. Beside them timers are counted, threads and processes
//! talk to each other, and the kernel's log is read. Options are on the kernel's command line.

#[path = "../../runtime/mailbox.rs"]
#[allow(dead_code, reason = "not all devices are used here")]
mod mailbox;
#[path = "../../runtime/options.rs"]
#[allow(dead_code, reason = "not all options apply here")]
mod options;
#[path = "../../runtime/reporting.rs"]
mod reporting;
#[path = "../../runtime/words.rs"]
mod words;

mod clocks;
mod finding;
mod fpu;
mod heartbeat;
mod init;
mod kernel_log;
mod load;
mod memory;
mod page;
mod part;
mod storms;
mod timers;

use std::process::ExitCode;

fn main() -> ExitCode {
    match init::run() {
        Ok(never) => match never {},
        Err(error) => {
            // The kernel panics when its first process exits; this is the last line before.
            eprintln!("linux-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
