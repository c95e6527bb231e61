//! The `show` command.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::CliError;
use crate::report::folder::Folder;
use crate::report::show::{Sources, lines};
use crate::report::stdout::say;
use crate::report::{html, record};

#[derive(Args)]
pub(super) struct Show {
    /// The evidence folder of the case.
    folder: PathBuf,
    /// Only lines from these sources, such as harness,qmp-sent,qmp-received,vmm.
    #[arg(long, value_name = "SOURCE", value_delimiter = ',')]
    source: Vec<String>,
    /// Write an HTML page instead and print its path [default: case.html in FOLDER].
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    html: Option<Option<PathBuf>>,
}

/// Runs `show`.
pub(super) fn main(show: &Show) -> Result<ExitCode, CliError> {
    let folder = Folder::read(&show.folder).map_err(CliError::usage)?;
    let sources = Sources::new(&show.source, &folder.timeline).map_err(CliError::usage)?;
    if let Some(file) = &show.html {
        let file = file.clone().unwrap_or_else(|| show.folder.join("case.html"));
        let page = html::case_page(&folder, &sources, &file);
        record::write(&file, &page).map_err(CliError::environment)?;
        say(file.display());
        return Ok(ExitCode::SUCCESS);
    }
    let width = std::io::stdout().is_terminal().then(terminal_size::terminal_size).flatten();
    let width = width.map(|(width, _)| usize::from(width.0));
    lines(&folder, &sources, width).iter().for_each(say);
    Ok(ExitCode::SUCCESS)
}
