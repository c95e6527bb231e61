//! The `matrix` command.

use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::filter::{self, Filter};
use super::report::Files;
use super::selection::{Selection, select};
use super::setup::Ready;
use super::starting::Starting;
use super::vmm::{candidate, candidate_option, cross_version, skew_option};
use super::{CliError, ENVIRONMENT, FAILED, cores};
use crate::backend::skew::Course;
use crate::matrix::Route;
use crate::matrix::build::{Build, MOST};
use crate::matrix::first_update::{FirstUpdate, try_first_update};
use crate::matrix::table::{self, Row};
use crate::process::signals::Ending;
use crate::report::case_text::details;
use crate::report::stdout::say;
use crate::run::{Options, Report, Verdict, schedule};
use crate::scenario::Case;
use crate::scenario::shard::Shard;

/// Default filter: updates that succeed, and failing ones that must not lose the VM.
const CASES: [&str; 2] = ["update/", "kept/"];

#[derive(Args)]
pub(super) struct Matrix {
    /// Builds to test: the path of a `cpr-vmm`, of a harness that contains one, or of a QEMU;
    /// `cpr-vmm` for the one in this binary.
    #[arg(value_name = "BUILD", num_args = 2.., required = true)]
    builds: Vec<String>,
    /// Only cases that match, as for `run`; can be repeated [default: update/ and kept/].
    #[arg(long, value_name = "FILTER")]
    filter: Vec<Filter>,
    /// Only part I of N of these cases, such as 1/2.
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Cases to run in parallel [default: number of CPUs].
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Fail also if a build refuses an update because its state format differs.
    #[arg(long)]
    must_update: bool,
    /// Exit with status 3 if a case cannot run here.
    #[arg(long)]
    require_all: bool,
    /// Write the builds, verdicts and reports to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Folder for evidence.
    #[arg(long, default_value = "evidence", value_name = "DIR")]
    evidence: PathBuf,
}

/// Runs `matrix`.
pub(super) fn main(matrix: &Matrix) -> Result<ExitCode, CliError> {
    if matrix.builds.len() > MOST {
        return Err(CliError::usage(format!(
            "{} builds given: at most {MOST} are supported",
            matrix.builds.len()
        )));
    }
    let mut filter = matrix.filter.clone();
    if !filter::request(&filter) {
        filter.extend(CASES.iter().filter_map(|case| case.parse::<Filter>().ok()));
    }
    let set = select(&Selection::by_name(filter, matrix.shard))?;
    Files::only_json(matrix.json.clone()).try_out()?;
    let ready = Ready::new(&matrix.evidence, Ending::AtOnce)?;
    let build = |name: &String| {
        let backend = candidate(name, &Starting::default(), &[])?;
        let cannot = |e| format!("cannot read {}: {e}", backend.executable().display());
        Build::of(name, Arc::clone(&backend)).map_err(|e| CliError::usage(cannot(e)))
    };
    let builds = matrix.builds.iter().map(build).collect::<Result<Vec<_>, CliError>>()?;
    // Before the first case, so that an error does not discard finished work.
    let with_options = |route: Route| Ok((route, options(&ready, matrix, &builds, &route)?));
    let routes = Route::all(builds.len()).into_iter().map(with_options);
    let routes = routes.collect::<Result<Vec<_>, CliError>>()?;
    table::builds(&builds).iter().for_each(say);
    say(&set);
    let jobs = matrix.jobs.map_or_else(cores, NonZeroUsize::get);
    let mut rows: Vec<Row> = Vec::new();
    for (route, options) in &routes {
        let row = match refused_before(route, &rows) {
            Some(row) => row,
            None => travel(route, &set.cases, jobs, options)?,
        };
        rows.push(row);
    }
    say("");
    table::markdown(&rows).iter().for_each(say);
    table::failures(&rows).iter().for_each(say);
    if let Some(path) = &matrix.json {
        let cannot = |e: &dyn std::fmt::Display| {
            CliError::environment(format!("cannot write {}: {e}", path.display()))
        };
        let counted = |row: &Row| json!({ "counts": row.counts(), "route": row });
        let routes: Vec<_> = rows.iter().map(counted).collect();
        let all = json!({ "builds": builds, "routes": routes });
        let text = serde_json::to_string_pretty(&all).map_err(|e| cannot(&e))?;
        fs::write(path, text + "\n").map_err(|e| cannot(&e))?;
    }
    Ok(ExitCode::from(exit_code(&rows, matrix.must_update, matrix.require_all)))
}

/// Exit status of the harness.
fn exit_code(rows: &[Row], must_update: bool, require_all: bool) -> u8 {
    let any = |is: &dyn Fn(&Row) -> bool| rows.iter().any(is);
    let failed = any(&|row| row.counts().failed > 0);
    let refused = must_update && any(&|row| row.refused.is_some());
    let missed = require_all && any(&Row::any_missed);
    match (failed || refused, missed || any(&Row::could_not_be_run)) {
        (true, _) => FAILED,
        (false, true) => ENVIRONMENT,
        (false, false) => 0,
    }
}

fn options(
    ready: &Ready,
    matrix: &Matrix,
    builds: &[Build],
    route: &Route,
) -> Result<Options, CliError> {
    let (from, to) = (&builds[route.from], &builds[route.to]);
    let backend = cross_version(from.backend.clone(), to.backend.clone(), route.course)?;
    let evidence = matrix.evidence.join("matrix").join(route.folder());
    let option = candidate_option(&from.name, &*from.backend, &Starting::default(), &[]);
    Ok(ready.options(backend, evidence, option + &skew_option(&to.name, route.course)))
}

/// The row of a there-and-back route of which one direction was refused.
fn refused_before(route: &Route, rows: &[Row]) -> Option<Row> {
    let parts = route.parts().map(|part| part.title());
    let refused = rows.iter().filter(|row| parts.contains(&row.route));
    let refused = refused.filter_map(|row| Some((&row.route, row.refused.as_ref()?))).next();
    let (part, why) = refused.filter(|_| route.course == Course::ThereAndBack)?;
    let refused = Some(format!("{part}: {why}"));
    Some(Row { route: route.title(), refused, reports: Vec::new() })
}

/// Runs the cases on one route, if a first update succeeds there.
fn travel(route: &Route, cases: &[Case], jobs: usize, options: &Options) -> Result<Row, CliError> {
    let title = route.title();
    let met = try_first_update(route, options).map_err(CliError::usage)?;
    let (refused, reports) = match met {
        FirstUpdate::Updated => (None, Vec::new()),
        FirstUpdate::Refused(why) => (Some(why), Vec::new()),
        FirstUpdate::Failed(report) | FirstUpdate::NotTried(report) => (None, vec![report]),
    };
    let mut row = Row { route: title, refused, reports };
    let tell = |row: &Row, report: &Report| {
        let verdict = match &report.verdict {
            Verdict::Fail(_) => "FAIL".to_owned(),
            Verdict::Broken(why) => format!("BROKEN {why}"),
            Verdict::Pass | Verdict::Ignored(_) => return,
        };
        say(format_args!("{}: {}: {verdict}", row.route, report.case));
        details(report).iter().for_each(say);
    };
    if row.refused.is_some() || !row.reports.is_empty() {
        row.reports.iter().for_each(|report| tell(&row, report));
        return Ok(row);
    }
    let cases: Vec<Case> = cases.iter().map(|case| route.case(case.clone())).collect();
    schedule::run(&cases, jobs, options, |report| {
        tell(&row, &report);
        row.reports.push(report);
    });
    row.reports.sort_by(|a, b| a.case.cmp(&b.case));
    let counts = row.counts();
    say(format_args!("{}: {} passed, {} failed", row.route, counts.passed, counts.failed));
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Finding;
    use crate::run::verdict::HOST_LACKS;
    use rstest::rstest;

    fn row(refused: bool, verdicts: &[Verdict]) -> Row {
        let report = |verdict: &Verdict| {
            let report = Report::of("a/b", String::new(), String::new());
            Report { verdict: verdict.clone(), ..report }
        };
        let reports = verdicts.iter().map(report).collect();
        Row { route: String::new(), refused: refused.then(String::new), reports }
    }

    fn ignored(why: &str) -> Verdict {
        Verdict::Ignored(why.to_owned())
    }

    #[rstest]
    #[case::passed(row(false, &[Verdict::Pass]), [0, 0, 0])]
    #[case::empty_shard(row(false, &[]), [0, 0, 0])]
    #[case::refused(row(true, &[]), [0, FAILED, 0])]
    #[case::failed(row(false, &[Verdict::Fail(vec![Finding::new("ram", "")])]), [FAILED; 3])]
    #[case::broken(row(false, &[Verdict::Pass, Verdict::Broken(String::new())]), [ENVIRONMENT; 3])]
    #[case::nothing(row(false, &[ignored("no KVM here")]), [ENVIRONMENT; 3])]
    #[case::some(row(false, &[Verdict::Pass, ignored("no KVM here")]), [0, 0, ENVIRONMENT])]
    #[case::never(row(false, &[Verdict::Pass, ignored(HOST_LACKS)]), [0, 0, 0])]
    fn exit_status_counts_what_was_not_run(#[case] row: Row, #[case] expected: [u8; 3]) {
        let wishes = [(false, false), (true, false), (false, true)];
        let rows = [self::row(false, &[Verdict::Pass]), row];
        assert_eq!(wishes.map(|(update, all)| exit_code(&rows, update, all)), expected);
    }
}
