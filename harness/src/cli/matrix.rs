//! `matrix`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::report::Files;
use super::selection::{Selection, select};
use super::vmm::{contender, contender_option, skew_option, skewed};
use super::{ENVIRONMENT, FAILED, Stop, cores};
use crate::backend::qemu::Accelerator;
use crate::backend::skew::Course;
use crate::matrix::Route;
use crate::matrix::build::{Build, MOST};
use crate::matrix::meeting::{Meeting, meet};
use crate::matrix::table::{self, Row};
use crate::report::stdout::say;
use crate::report::terminal::details;
use crate::run::{self, Options, Patience, Report, Verdict, schedule};
use crate::scenario::Case;
use crate::scenario::shard::Shard;

/// The cases that are run unless others are asked for: good updates, and bad ones that no VM may be
/// lost in.
const CASES: [&str; 2] = ["update/", "kept/"];

#[derive(Args)]
pub(super) struct Matrix {
    /// The builds: paths of `cpr-vmm` or of a harness that carries one, `cpr-vmm` for the one in this
    /// binary, or QEMUs.
    #[arg(value_name = "BUILD", num_args = 2.., required = true)]
    builds: Vec<String>,
    /// Only cases whose name contains this; several: any of them [default: update/ and kept/].
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Only part i of n of these cases, such as 1/2.
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// How many cases at a time [default: as many as there are CPUs].
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// A build of another format, which refuses the other one's guests, is a failure, too.
    #[arg(long)]
    must_update: bool,
    /// A case that cannot run here is an error (exit status 3).
    #[arg(long)]
    require_all: bool,
    /// Write builds, verdicts and reports to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where evidence goes.
    #[arg(long, default_value = "evidence", value_name = "DIR")]
    evidence: PathBuf,
}

/// Runs it.
pub(super) fn main(matrix: &Matrix) -> Result<ExitCode, Stop> {
    if matrix.builds.len() > MOST {
        return Err(Stop::usage(format!("{} builds are more than {MOST}", matrix.builds.len())));
    }
    let filter = match matrix.filter.as_slice() {
        [] => CASES.map(str::to_owned).to_vec(),
        given => given.to_vec(),
    };
    let set = select(&Selection { filter, shard: matrix.shard, scenarios: Vec::new() })?;
    Files::only_json(matrix.json.clone()).try_out()?;
    run::guard();
    let build = |name: &String| {
        let backend = contender(name, Accelerator::default())?;
        let cannot = |e| format!("cannot read {}: {e}", backend.executable().display());
        Build::of(name, Arc::clone(&backend)).map_err(|e| Stop::usage(cannot(e)))
    };
    let builds = matrix.builds.iter().map(build).collect::<Result<Vec<_>, Stop>>()?;
    // All of them before the first case: an error must not cost what has been run.
    let with_options = |route: Route| Ok((route, options(matrix, &builds, &route)?));
    let routes = Route::all(builds.len()).into_iter().map(with_options);
    let routes = routes.collect::<Result<Vec<_>, Stop>>()?;
    table::builds(&builds).iter().for_each(say);
    say(&set);
    let jobs = matrix.jobs.unwrap_or_else(cores);
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
            Stop::environment(format!("cannot write {}: {e}", path.display()))
        };
        let counted = |row: &Row| json!({ "counts": row.counts(), "route": row });
        let routes: Vec<_> = rows.iter().map(counted).collect();
        let all = json!({ "builds": builds, "routes": routes });
        let text = serde_json::to_string_pretty(&all).map_err(|e| cannot(&e))?;
        fs::write(path, text + "\n").map_err(|e| cannot(&e))?;
    }
    Ok(ExitCode::from(exit_code(&rows, matrix.must_update, matrix.require_all)))
}

/// With what the harness ends.
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

fn options(matrix: &Matrix, builds: &[Build], route: &Route) -> Result<Options, Stop> {
    let (from, to) = (&builds[route.from], &builds[route.to]);
    let backend = skewed(from.backend.clone(), to.backend.clone(), route.course)?;
    Ok(Options {
        backend,
        evidence: matrix.evidence.join("matrix").join(route.folder()),
        keep: false,
        audits: true,
        patience: Patience::default(),
        vmm_option: contender_option(&from.name, Accelerator::default())
            + &skew_option(&to.name, route.course),
    })
}

/// The row of a way there and back of which one part is not possible.
fn refused_before(route: &Route, rows: &[Row]) -> Option<Row> {
    let parts = route.parts().map(|part| part.title());
    let refused = rows.iter().filter(|row| parts.contains(&row.route));
    let refused = refused.filter_map(|row| Some((&row.route, row.refused.as_ref()?))).next();
    let (part, why) = refused.filter(|_| route.course == Course::ThereAndBack)?;
    let refused = Some(format!("{part}: {why}"));
    Some(Row { route: route.title(), refused, reports: Vec::new() })
}

/// Runs the cases on one route, if an update is possible there at all.
fn travel(route: &Route, cases: &[Case], jobs: usize, options: &Options) -> Result<Row, Stop> {
    let title = route.title();
    let met = meet(route, options).map_err(Stop::usage)?;
    let (refused, reports) = match met {
        Meeting::Updated => (None, Vec::new()),
        Meeting::Refused(why) => (Some(why), Vec::new()),
        Meeting::Failed(report) | Meeting::NotTried(report) => (None, vec![report]),
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
    #[case::failed(row(false, &[Verdict::Fail(vec![Finding::new("a", "")])]), [FAILED; 3])]
    #[case::broken(row(false, &[Verdict::Pass, Verdict::Broken(String::new())]), [ENVIRONMENT; 3])]
    #[case::nothing(row(false, &[ignored("no KVM here")]), [ENVIRONMENT; 3])]
    #[case::some(row(false, &[Verdict::Pass, ignored("no KVM here")]), [0, 0, ENVIRONMENT])]
    #[case::never(row(false, &[Verdict::Pass, ignored(HOST_LACKS)]), [0, 0, 0])]
    fn what_was_not_run_is_no_success(#[case] row: Row, #[case] expected: [u8; 3]) {
        let wishes = [(false, false), (true, false), (false, true)];
        let rows = [self::row(false, &[Verdict::Pass]), row];
        assert_eq!(wishes.map(|(update, all)| exit_code(&rows, update, all)), expected);
    }
}
