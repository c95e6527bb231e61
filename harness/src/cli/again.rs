//! What a run takes from an earlier one: the cases that failed or did not run, and how long they took.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::CliError;
use crate::lab;
use crate::report::last_run::{FILE, LastRun};
use crate::report::record::Record;
use crate::run::case::quoted;
use crate::run::evidence::folder_name;
use crate::run::rounds::without_round;
use crate::scenario::Case;

/// Which cases of the last run are run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Those that failed or could not be run.
    Failed,
    /// Those that did not begin or were interrupted.
    NotRun,
}

impl Again {
    /// The option that asks for it.
    pub(super) fn option(self) -> &'static str {
        match self {
            Self::Failed => "--rerun-failed",
            Self::NotRun => "--continue",
        }
    }

    /// Reads the state of the last run with the folder `evidence`, and the names of these cases.
    pub(super) fn read(self, evidence: &Path) -> Result<(LastRun, BTreeSet<String>), CliError> {
        let folder = evidence.display();
        let last = LastRun::read(evidence).map_err(|e| {
            CliError::usage(format!(
                "cannot read {}: {e}; omit {} to run all cases, which replaces that file",
                evidence.join(FILE).display(),
                self.option()
            ))
        })?;
        let last = last.ok_or_else(|| {
            CliError::usage(format!(
                "there was no run with evidence in {folder}: omit {}",
                self.option()
            ))
        })?;
        let (cases, what) = match self {
            Self::Failed => (last.failed.clone(), "no case failed in"),
            Self::NotRun => (last.not_run.clone(), "every case ended in"),
        };
        match cases.is_empty() {
            true => Err(CliError::usage(format!("{what} the last run with evidence in {folder}"))),
            false => Ok((last, cases)),
        }
    }
}

/// Returns how long cases took, according to the record of an earlier run.
pub(super) fn durations(record: &Path) -> Result<BTreeMap<String, Duration>, CliError> {
    let record = Record::read(record).map_err(CliError::usage)?;
    let took = record.cases.into_iter().map(|entry| (entry.report.case, entry.report.took));
    Ok(took.collect())
}

/// Removes the evidence of the second and further rounds of an earlier run of `cases`. The names of
/// `all` cases may end like a round.
pub(super) fn remove_rounds(
    evidence: &Path,
    cases: &[Case],
    all: &[String],
) -> Result<(), CliError> {
    let all: BTreeSet<String> = all.iter().map(|name| folder_name(name)).collect();
    let names: BTreeSet<String> = cases.iter().map(|case| folder_name(&case.name)).collect();
    let themes: BTreeSet<&Path> =
        names.iter().filter_map(|name| Path::new(name).parent()).collect();
    for theme in themes {
        let entries = fs::read_dir(evidence.join(theme)).into_iter().flatten().flatten();
        for entry in entries {
            let name = theme.join(entry.file_name()).to_string_lossy().into_owned();
            let case = without_round(&name);
            if case != name && names.contains(case) && !all.contains(&name) {
                let path = entry.path();
                remove(&path).map_err(|e| {
                    CliError::usage(format!("cannot remove {}: {e}", path.display()))
                })?;
            }
        }
    }
    Ok(())
}

/// Removes a folder, if it is there.
pub(super) fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Options that select other cases, or require a run of all, and take a value.
const OF_OTHER_RUNS: [&str; 3] = ["--exact", "--errors", "--check-errors"];

/// Options whose value may look like an option.
const WITH_ANY_VALUE: [&str; 2] = ["--vmm-arg", "--new-vmm-arg"];

/// The command line of this run, with `again` instead of what it took from an earlier one.
pub(super) fn command(again: Again) -> String {
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let program = quoted(&words.next().unwrap_or_default());
    let lab = lab::outside().map(|lab| format!("{lab} ")).unwrap_or_default();
    format!("{program} {lab}{}", command_of(words, again))
}

fn command_of(mut words: impl Iterator<Item = String>, again: Again) -> String {
    let other = [Again::Failed, Again::NotRun].map(Again::option);
    // The subcommand; the option must not come after `--`.
    let mut kept: Vec<String> = words.by_ref().take(1).collect();
    kept.push(again.option().to_owned());
    while let Some(word) = words.next() {
        let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
        if OF_OTHER_RUNS.contains(&name) {
            if name == word {
                words.next();
            }
            continue;
        }
        let (has_any_value, is_last) = (WITH_ANY_VALUE.contains(&word.as_str()), word == "--");
        if !other.contains(&word.as_str()) {
            kept.push(word);
        }
        if has_any_value {
            kept.extend(words.next());
        }
        if is_last {
            kept.extend(words.by_ref());
        }
    }
    kept.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::parse::parse;
    use rstest::rstest;

    #[rstest]
    #[case("run", "run --continue")]
    #[case("run --rerun-failed --jobs 1", "run --continue --jobs 1")]
    #[case("run --exact a/b --exact=a/c --jobs 1", "run --continue --jobs 1")]
    #[case("run --errors E.md --check-errors=E.md -q", "run --continue -q")]
    #[case(
        "run --vmm-arg --exact --vmm-arg=--errors",
        "run --continue --vmm-arg --exact --vmm-arg=--errors"
    )]
    #[case("run -- --continue --exact x", "run --continue -- --continue --exact x")]
    fn command_is_one_that_is_accepted(#[case] was: &str, #[case] again: &str) {
        let words = was.split(' ').map(str::to_owned);
        assert_eq!(command_of(words, Again::NotRun), again);
    }

    #[test]
    fn rounds_of_the_selected_cases_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let all = ["a/b,c=1", "a/b,c=1@2", "a/b,c=1@17", "a/b,c=2@2", "a/b,c=1@3"];
        for name in all {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let text = "summary = \"\"\nsteps = [\"boot\", \"quit\"]\n";
        let mut case = parse("b.toml", "a/b", text).unwrap().remove(0);
        case.name.push_str("[c=1]");
        remove_rounds(folder.path(), &[case], &["a/b[c=1]@3".to_owned()])
            .map_err(|CliError(why, _)| why)
            .unwrap();
        let left = all.map(|name| folder.path().join(name).exists());
        assert_eq!(left, [true, false, false, true, true]);
    }
}
