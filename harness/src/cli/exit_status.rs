//! The exit status of a run.

use std::process::ExitCode;

use super::{ENVIRONMENT, FAILED, complain};
use crate::report::terminal::Terminal;

/// Exit status of the harness; `same`: the table of errors matches.
pub(super) fn of(terminal: &Terminal, same: bool, require_all: bool) -> ExitCode {
    let broken =
        terminal.any_broken() || terminal.all_ignored() || require_all && terminal.any_missed();
    ExitCode::from(match (terminal.any_failed() || !same, broken) {
        (true, _) => FAILED,
        (false, true) => ENVIRONMENT,
        (false, false) => 0,
    })
}

/// Complains of what could not be written, which decides the exit status only if that was 0.
pub(super) fn despite(wrong: &[String], code: ExitCode) -> ExitCode {
    wrong.iter().for_each(|why| complain(why));
    match code == ExitCode::SUCCESS && !wrong.is_empty() {
        true => ExitCode::from(ENVIRONMENT),
        false => code,
    }
}
