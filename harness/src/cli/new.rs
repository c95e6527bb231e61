//! The `new` and `schema` commands, for writing scenarios.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::CliError;
use crate::report::stdout::say;
use crate::scenario::schema;
use crate::scenario::set::FOLDER;

/// A scenario that runs unchanged, with a comment on each part.
const EXAMPLE: &str = include_str!("../scenario/example.toml");
/// The schema that the first line of the example names.
const SCHEMA: &str = "scenario.schema.json";

#[derive(Args)]
pub(super) struct New {
    /// Name of the scenario; it is written to scenarios/THEME/NAME.toml.
    #[arg(value_name = "THEME/NAME", value_parser = name)]
    name: String,
}

/// Runs `new`.
pub(super) fn main(new: &New) -> Result<ExitCode, CliError> {
    let path = PathBuf::from(format!("{FOLDER}/{}.toml", new.name));
    let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
    // Never overwrites a file.
    let written = folder
        .and_then(|()| File::create_new(&path))
        .and_then(|mut file| file.write_all(EXAMPLE.as_bytes()));
    written.map_err(|e| CliError::usage(format!("cannot write {}: {e}", path.display())))?;
    write_schema()?;
    say(path.display());
    say(format_args!("run it: cpr-harness run --filter {}", new.name));
    Ok(ExitCode::SUCCESS)
}

/// Writes the schema of this binary beside the themes, unless it is there.
fn write_schema() -> Result<(), CliError> {
    let (path, text) = (Path::new(FOLDER).join(SCHEMA), format!("{}\n", schema::text()));
    if fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let written = fs::write(&path, text);
    written.map_err(|e| CliError::usage(format!("cannot write {}: {e}", path.display())))
}

/// Prints the schema.
pub(super) fn schema() -> Result<ExitCode, CliError> {
    say(schema::text());
    Ok(ExitCode::SUCCESS)
}

fn name(text: &str) -> Result<String, String> {
    let is_word = |word: &str| {
        let letters = word.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'));
        letters && !word.is_empty()
    };
    match text.split_once('/') {
        Some((theme, name)) if is_word(theme) && is_word(name) => Ok(text.to_owned()),
        _ => Err("expected theme/name in lower-case letters, digits and hyphens".into()),
    }
}
