//! The command line of the harness.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::observe::clock;

mod bench;
mod catalogue;
mod conform;
mod guests;
mod replay;
mod run;
mod selection;
mod soak;
mod vmm;

/// Some case failed.
const FAILED: u8 = 1;
/// The command line or a scenario is wrong.
const USAGE: u8 = 2;
/// The machine does not let the harness work.
const ENVIRONMENT: u8 = 3;

/// Proves that a live update of a VMM keeps everything a guest and its operator rely on.
#[derive(Parser)]
#[command(name = "cpr-harness", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run scenarios.
    Run(run::Run),
    /// List the cases that `run` would run.
    List(selection::Selection),
    /// Run the case of an evidence folder again.
    Replay(replay::Replay),
    /// Be the VMM (`vmm --help` tells its options).
    #[command(disable_help_flag = true)]
    Vmm {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Plant each known class of bug, and show that its scenario notices it.
    Catalogue(catalogue::Catalogue),
    /// Run scenarios on two VMMs, and tell in what they differ.
    Conform(conform::Conform),
    /// Measure how long the guest stands still in an update, of several VMMs side by side.
    Bench(bench::Bench),
    /// Update many guests side by side, again and again, until it is enough or the first damage.
    Soak(soak::Soak),
    /// List the guests, or write their ELF files to a folder.
    Guests {
        /// Where to write them.
        #[arg(long, value_name = "DIR")]
        extract: Option<PathBuf>,
    },
}

/// Why there is no run: the message and the exit code.
struct Stop(String, u8);

impl Stop {
    fn usage(why: impl ToString) -> Self {
        Self(why.to_string(), USAGE)
    }

    fn environment(why: impl ToString) -> Self {
        Self(why.to_string(), ENVIRONMENT)
    }
}

/// The harness as a program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are no errors.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { USAGE } else { 0 });
        }
    };
    clock::start();
    let done = match cli.command {
        Command::Run(run) => run::main(&run),
        Command::List(selection) => selection::list(&selection),
        Command::Replay(replay) => replay::main(&replay),
        Command::Catalogue(catalogue) => catalogue::main(&catalogue),
        Command::Conform(conform) => conform::main(&conform),
        Command::Bench(bench) => bench::main(&bench),
        Command::Soak(soak) => soak::main(&soak),
        Command::Vmm { arguments } => {
            return cpr_vmm::main(arguments.into_iter().map(Into::into));
        }
        Command::Guests { extract } => guests::main(extract.as_deref()),
    };
    done.unwrap_or_else(|Stop(why, code)| {
        eprintln!("cpr-harness: {why}");
        ExitCode::from(code)
    })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
