//! The command line of the harness.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::observe::clock;
use crate::report::stdout;

mod again;
mod bench;
mod catalogue;
mod conform;
mod doctor;
mod examples;
mod exit_status;
mod explore;
mod filter;
mod guests;
mod known;
mod lab;
mod matrix;
mod new;
mod replay;
mod report;
mod run;
mod run_cases;
mod selection;
mod setup;
mod shell;
mod show;
mod soak;
mod starting;
mod vmm;

/// Exit status when a case failed.
const FAILED: u8 = 1;
/// Exit status when the command line or a scenario is invalid.
const USAGE: u8 = 2;
/// Exit status when the harness cannot work on this host.
const ENVIRONMENT: u8 = 3;

/// The program's name in help and error messages.
const PROGRAM: &str = "cpr-harness";

/// Tests that a live update of a VMM preserves everything a guest and its operator rely on.
///
/// This one file carries a VMM, its guests and the scenarios. In a working tree it uses the
/// scenarios in `scenarios/`. Exit status: 0 all passed, 1 some failed, 2 invalid usage, 3 cannot
/// work on this host.
#[derive(Parser)]
#[command(name = PROGRAM, version, long_version = crate::VERSION)]
#[command(after_help = examples::PROGRAM, max_term_width = 100)]
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
    List(selection::List),
    /// Run the case of an evidence folder again.
    #[command(after_help = examples::REPLAY)]
    Replay(replay::Replay),
    /// Show an evidence folder as a timeline: what happened, when, and where it was recorded.
    #[command(after_help = examples::SHOW)]
    Show(show::Show),
    /// Write reports of finished runs.
    #[command(after_help = examples::REPORT)]
    Report(report::Report),
    /// Run the VMM carried in this binary (`vmm --help` lists its options).
    #[command(disable_help_flag = true)]
    Vmm {
        /// Arguments of the VMM.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Plant each known class of bug, and show that its scenario detects it.
    #[command(after_help = examples::CATALOGUE)]
    Catalogue(catalogue::Catalogue),
    /// Run scenarios on two VMMs and report the differences.
    #[command(after_help = examples::CONFORM)]
    Conform(conform::Conform),
    /// Run random sequences of steps from a seed, and reduce a failing one to a small scenario.
    #[command(after_help = examples::EXPLORE)]
    Explore(explore::Explore),
    /// Run scenarios that update each of several builds to every other one and back.
    #[command(after_help = examples::MATRIX)]
    Matrix(matrix::Matrix),
    /// Measure how long an update stops the guest, and compare several VMMs.
    #[command(after_help = examples::BENCH)]
    Bench(bench::Bench),
    /// Update many guests in parallel, repeatedly, up to a limit, a signal or the first damage.
    #[command(after_help = examples::SOAK)]
    Soak(soak::Soak),
    /// List the guests, or write their ELF files to a folder.
    Guests {
        /// Folder to write the ELF files to.
        #[arg(long, value_name = "DIR")]
        extract: Option<PathBuf>,
    },
    /// Run a command on real KVM in an emulated host, on machines without KVM too.
    #[command(after_help = examples::LAB)]
    Lab(lab::Lab),
    /// Check this host: what can run here, and how to enable the rest.
    Doctor,
    /// Write an example scenario with a comment on each part.
    #[command(after_help = examples::NEW)]
    New(new::New),
    /// Print the JSON Schema of scenario files.
    #[command(after_help = examples::SCHEMA)]
    Schema,
    /// Print a shell completion script for commands and options.
    #[command(after_help = examples::COMPLETIONS)]
    Completions(shell::Completions),
    /// Print the manual page.
    #[command(after_help = examples::MAN)]
    Man(shell::Man),
}

/// An error that ends the program: the message and the exit status.
struct CliError(String, u8);

impl CliError {
    fn usage(why: impl ToString) -> Self {
        Self(why.to_string(), USAGE)
    }

    fn environment(why: impl ToString) -> Self {
        Self(why.to_string(), ENVIRONMENT)
    }
}

/// The command-line definition, for documentation and for checks of example command lines.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the harness from the command line.
pub fn main() -> ExitCode {
    let parsed = Cli::command().try_get_matches();
    let parsed = parsed.and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => {
            // Help and version are not errors.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { USAGE } else { 0 });
        }
    };
    clock::start();
    // What follows which option shows only there.
    let matches = matches.subcommand().map(|(_, matches)| matches.clone()).unwrap_or_default();
    let done = match cli.command {
        Command::Run(run) => run::main(run),
        Command::List(list) => selection::list(&list),
        Command::Replay(replay) => replay::main(&replay),
        Command::Show(show) => show::main(&show),
        Command::Report(report) => report::main(&report),
        Command::Catalogue(catalogue) => catalogue::main(&catalogue),
        Command::Conform(conform) => conform::main(&conform, &matches),
        Command::Explore(explore) => explore::main(&explore),
        Command::Matrix(matrix) => matrix::main(&matrix),
        Command::Bench(bench) => bench::main(&bench, &matches),
        Command::Soak(soak) => soak::main(&soak),
        Command::Vmm { arguments } => {
            return cpr_vmm::main(arguments.into_iter().map(Into::into));
        }
        Command::Guests { extract } => guests::main(extract.as_deref()),
        Command::Lab(lab) => lab::main(lab),
        Command::Doctor => doctor::main(),
        Command::New(new) => new::main(&new),
        Command::Schema => new::schema(),
        Command::Completions(completions) => shell::completions(&completions),
        Command::Man(man) => shell::man(&man),
    };
    let code = done.unwrap_or_else(|CliError(why, code)| {
        complain(&why);
        ExitCode::from(code)
    });
    match stdout::failure() {
        Some(error) => {
            complain(&format!("cannot write to standard output: {error}"));
            // The result of the run takes precedence over the failure to print it.
            if code == ExitCode::SUCCESS { ExitCode::from(ENVIRONMENT) } else { code }
        }
        None => code,
    }
}

/// Prints to standard error, in colours only on a terminal; ignores failures, because it may be as full as standard output.
fn complain(why: &str) {
    let _ = writeln!(anstream::stderr(), "{PROGRAM}: {why}");
}

/// Number of CPUs that the harness may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
