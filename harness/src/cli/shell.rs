//! The `completions` and `man` commands.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;

use super::{CliError, PROGRAM};
use crate::report::stdout::{self, say};

#[derive(Args)]
pub(super) struct Completions {
    /// Shell to complete for.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Args)]
pub(super) struct Man {
    /// Write a page for each command to this folder, instead of the main page to standard output.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints a shell completion script.
pub(super) fn completions(completions: &Completions) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(completions.shell, &mut super::command(), PROGRAM, &mut script);
    stdout::write(&script);
    Ok(ExitCode::SUCCESS)
}

/// Prints the manual page, or writes all of them.
pub(super) fn man(man: &Man) -> Result<ExitCode, CliError> {
    match &man.dir {
        None => {
            let mut page = Vec::new();
            let made = clap_mangen::Man::new(super::command()).render(&mut page);
            made.map_err(|e| {
                CliError::environment(format!("cannot generate the manual page: {e}"))
            })?;
            stdout::write(&page);
        }
        Some(folder) => pages(folder).map_err(|e| {
            CliError::environment(format!("cannot write to {}: {e}", folder.display()))
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

fn pages(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(super::command(), folder)?;
    say(format_args!("man {}/{PROGRAM}.1", folder.display()));
    Ok(())
}
