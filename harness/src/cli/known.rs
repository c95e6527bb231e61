//! The option that replaces the list of known differences.

use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::conform::differences::Differences;
use crate::run::case::quoted;

#[derive(Args, Clone, Default)]
pub(super) struct Known {
    /// Known differences of other VMMs, in place of scenarios/differences.toml.
    #[arg(long, value_name = "FILE")]
    differences: Option<PathBuf>,
}

impl Known {
    /// Reads the list.
    pub(super) fn read(&self) -> Result<Differences, CliError> {
        match self.chosen()? {
            Some(chosen) => Ok(chosen),
            None => Differences::embedded().map_err(CliError::usage),
        }
    }

    /// Reads the list, if the option is there.
    pub(super) fn chosen(&self) -> Result<Option<Differences>, CliError> {
        let Some(path) = &self.differences else { return Ok(None) };
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| {
            CliError::usage(format!("cannot read the known differences from {name}: {e}"))
        })?;
        Differences::parse(&name, &text).map(Some).map_err(CliError::usage)
    }

    /// This list, or else `other`.
    pub(super) fn or(&self, other: Self) -> Self {
        if self.differences.is_some() { self.clone() } else { other }
    }

    /// The option with which `replay` uses the same list.
    pub(super) fn option(&self) -> String {
        let option =
            self.differences.iter().map(|path| format!("--differences={}", path.display()));
        option.map(|option| format!(" {}", quoted(&option))).collect()
    }
}
