//! The `guests` command.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use super::CliError;
use crate::report::stdout::say;

/// Lists the guests, and writes them to `extract` if given.
pub(super) fn main(extract: Option<&Path>) -> Result<ExitCode, CliError> {
    for guest in guest_images::GUESTS {
        say(format_args!("{}: {}", guest.name, guest.summary));
        let Some(folder) = extract else { continue };
        let path = folder.join(format!("{}.elf", guest.name));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, guest.elf))
            .map_err(|e| CliError::environment(format!("cannot write {}: {e}", path.display())))?;
        say(format_args!("  {}", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}
