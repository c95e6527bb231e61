//! The command line of the harness.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::observe::clock;
use crate::report::stdout;

mod bench;
mod catalogue;
mod conform;
mod doctor;
mod examples;
mod explore;
mod guests;
mod matrix;
mod new;
mod replay;
mod report;
mod run;
mod selection;
mod shell;
mod show;
mod soak;
mod vmm;

/// Some case failed.
const FAILED: u8 = 1;
/// The command line or a scenario is wrong.
const USAGE: u8 = 2;
/// The machine does not let the harness work.
const ENVIRONMENT: u8 = 3;

/// What it is called.
const PROGRAM: &str = "cpr-harness";

/// Proves that a live update of a VMM keeps everything a guest and its operator rely on.
///
/// This one file carries a VMM, its guests and the scenarios. In a working tree the scenarios are
/// those of `scenarios/`. Exit status: 0 all passed, 1 some failed, 2 wrong usage, 3 this machine
/// does not let it work.
#[derive(Parser)]
#[command(name = PROGRAM, version, after_help = examples::PROGRAM, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run scenarios.
    #[command(after_help = examples::RUN)]
    Run(run::Run),
    /// List the cases that `run` would run.
    #[command(after_help = examples::LIST)]
    List(selection::Selection),
    /// Run the case of an evidence folder again.
    #[command(after_help = examples::REPLAY)]
    Replay(replay::Replay),
    /// Tell what is in an evidence folder: what happened, when, and who says so.
    #[command(after_help = examples::SHOW)]
    Show(show::Show),
    /// Make reports of runs that have been.
    #[command(after_help = examples::REPORT)]
    Report(report::Report),
    /// Be the VMM (`vmm --help` tells its options).
    #[command(disable_help_flag = true)]
    Vmm {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Plant each known class of bug, and show that its scenario notices it.
    #[command(after_help = examples::CATALOGUE)]
    Catalogue(catalogue::Catalogue),
    /// Run scenarios on two VMMs, and tell in what they differ.
    #[command(after_help = examples::CONFORM)]
    Conform(conform::Conform),
    /// Try sequences of steps drawn from a seed, and make a small scenario of one that fails.
    #[command(after_help = examples::EXPLORE)]
    Explore(explore::Explore),
    /// Run scenarios on updates from each of several builds to each other, and back.
    #[command(after_help = examples::MATRIX)]
    Matrix(matrix::Matrix),
    /// Measure how long the guest stands still in an update, of several VMMs side by side.
    #[command(after_help = examples::BENCH)]
    Bench(bench::Bench),
    /// Update many guests side by side, again and again, until it is enough or the first damage.
    #[command(after_help = examples::SOAK)]
    Soak(soak::Soak),
    /// List the guests, or write their ELF files to a folder.
    Guests {
        /// Where to write them.
        #[arg(long, value_name = "DIR")]
        extract: Option<PathBuf>,
    },
    /// Look at this host: what can run here, and what to do about the rest.
    Doctor,
    /// Write a scenario to begin with, with a comment on each part.
    #[command(after_help = examples::NEW)]
    New(new::New),
    /// Print the JSON Schema of scenario files.
    #[command(after_help = examples::SCHEMA)]
    Schema,
    /// Print what a shell needs to complete commands and options.
    #[command(after_help = examples::COMPLETIONS)]
    Completions(shell::Completions),
    /// Print the manual page.
    #[command(after_help = examples::MAN)]
    Man(shell::Man),
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

/// The command line, for what documents it or checks lines that use it.
pub fn command() -> clap::Command {
    Cli::command()
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
        Command::Show(show) => show::main(&show),
        Command::Report(report) => report::main(&report),
        Command::Catalogue(catalogue) => catalogue::main(&catalogue),
        Command::Conform(conform) => conform::main(&conform),
        Command::Explore(explore) => explore::main(&explore),
        Command::Matrix(matrix) => matrix::main(&matrix),
        Command::Bench(bench) => bench::main(&bench),
        Command::Soak(soak) => soak::main(&soak),
        Command::Vmm { arguments } => {
            return cpr_vmm::main(arguments.into_iter().map(Into::into));
        }
        Command::Guests { extract } => guests::main(extract.as_deref()),
        Command::Doctor => doctor::main(),
        Command::New(new) => new::main(&new),
        Command::Schema => new::schema(),
        Command::Completions(completions) => shell::completions(&completions),
        Command::Man(man) => shell::man(&man),
    };
    let code = done.unwrap_or_else(|Stop(why, code)| {
        complain(&why);
        ExitCode::from(code)
    });
    match stdout::failure() {
        Some(error) => {
            complain(&format!("cannot write to standard output: {error}"));
            // What a run has found counts more than who could not read it.
            if code == ExitCode::SUCCESS { ExitCode::from(ENVIRONMENT) } else { code }
        }
        None => code,
    }
}

/// On standard error, which may be as full as standard output.
fn complain(why: &str) {
    let _ = writeln!(std::io::stderr(), "{PROGRAM}: {why}");
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
