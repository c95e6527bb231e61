//! The `guests` command.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use guest_images::{GUESTS, INITRAMFS, LINUX, LINUX_SUMMARY};

use super::CliError;
use crate::report::stdout::say;

/// Lists the guests, and writes them to `extract` if given.
pub(super) fn main(extract: Option<&Path>) -> Result<ExitCode, CliError> {
    let images = GUESTS.iter().map(|guest| (guest.name, guest.summary, "elf", guest.elf));
    for (name, summary, ending, image) in images.chain([(LINUX, LINUX_SUMMARY, "cpio", INITRAMFS)])
    {
        say(format_args!("{name}: {summary}"));
        let Some(folder) = extract else { continue };
        let path = folder.join(format!("{name}.{ending}"));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, image))
            .map_err(|e| CliError::environment(format!("cannot write {}: {e}", path.display())))?;
        say(format_args!("  {}", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}
