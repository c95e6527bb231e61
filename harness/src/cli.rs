//! The command line of the harness.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::backend::Backend;
use crate::backend::cpr_vmm::CprVmm;
use crate::backend::mock::{Fault, Mock};
use crate::backend::qemu::{self, Accelerator, ProbeError, Qemu};
use crate::conform::differences::Differences;
use crate::observe::clock;
use crate::report::errors::{Errors, Wish};
use crate::report::stdout::say;
use crate::report::terminal::Terminal;
use crate::run::{Options, Patience, orphans, schedule, signals};
use crate::scenario::set::Set;
use crate::scenario::{Case, parse};

/// Some case failed.
const FAILED: u8 = 1;
/// The command line or a scenario is wrong.
const USAGE: u8 = 2;
/// The machine does not let the harness work.
const ENVIRONMENT: u8 = 3;

/// The QEMU that is found.
const QEMU: &str = "qemu";

/// Proves that a live update of a VMM keeps everything a guest and its operator rely on.
#[derive(Parser)]
#[command(name = "cpr-harness", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run scenarios.
    Run(Run),
    /// List the cases that `run` would run.
    List(Selection),
    /// Run the case of an evidence folder again.
    Replay(Replay),
    /// Be the VMM (`vmm --help` tells its options).
    #[command(disable_help_flag = true)]
    Vmm {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Plant each known class of bug, and show that its scenario notices it.
    Catalogue(Catalogue),
    /// Run scenarios on two VMMs, and tell in what they differ.
    Conform(conform::Conform),
    /// Measure how long the guest stands still in an update, of several VMMs side by side.
    Bench(bench::Bench),
    /// List the guests, or write their ELF files to a folder.
    Guests {
        /// Where to write them.
        #[arg(long, value_name = "DIR")]
        extract: Option<PathBuf>,
    },
}

#[derive(Args)]
struct Selection {
    /// Only cases whose name contains this; several: any of them.
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Scenario files or folders [default: scenarios/ here, else the embedded ones].
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<PathBuf>,
}

#[derive(Args)]
struct Vmm {
    /// Another build of the VMM, or a QEMU, instead of the VMM in this binary; `qemu` is the one in
    /// ci/.qemu/bin or $PATH.
    #[arg(long, value_name = "PATH")]
    vmm: Option<PathBuf>,
    /// What QEMU runs guests with.
    #[arg(long, value_enum, default_value_t)]
    accel: Accelerator,
    /// One more argument for our VMM; can be repeated.
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    vmm_arg: Vec<String>,
    /// What to run scenarios on.
    #[arg(long, value_enum, default_value_t = BackendKind::CprVmm)]
    backend: BackendKind,
    /// What the mock does wrong.
    #[arg(long, value_enum, hide = true)]
    fault: Option<Fault>,
    /// Leave the VM of a failed case up and print its PID and socket.
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendKind {
    /// Our VMM.
    CprVmm,
    /// A process that only plays a VMM.
    Mock,
}

#[derive(Args)]
struct Run {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    vmm: Vmm,
    /// How many cases at a time [default: as many as there are CPUs]; blackouts are best measured
    /// with 1.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Where evidence goes.
    #[arg(long, default_value = "evidence", value_name = "DIR")]
    evidence: PathBuf,
    /// A case that cannot run here is an error (exit status 3).
    #[arg(long)]
    require_all: bool,
    /// Write the table of all errors that operators read; takes a run of all cases.
    #[arg(long, value_name = "FILE", conflicts_with = "check_errors")]
    errors: Option<PathBuf>,
    /// Fail if the table in this file is not what the run shows; takes a run of all cases.
    #[arg(long, value_name = "FILE")]
    check_errors: Option<PathBuf>,
}

#[derive(Args)]
struct Catalogue {
    /// Only classes whose bug or case contains this; several: any of them.
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// How often each case is run without its bug.
    #[arg(long, value_name = "N", default_value_t = 1)]
    clean: u32,
    /// Write the catalogue to this file, and run nothing.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Where evidence goes.
    #[arg(long, default_value = "evidence", value_name = "DIR")]
    evidence: PathBuf,
}

#[derive(Args)]
struct Replay {
    /// The evidence folder of the case.
    folder: PathBuf,
    #[command(flatten)]
    vmm: Vmm,
    /// Where evidence goes [default: replay/ in the folder's parent].
    #[arg(long, value_name = "DIR")]
    evidence: Option<PathBuf>,
}

mod bench;
mod catalogue;
mod conform;

/// Why there is no run: the message and the exit code.
struct Stop(String, u8);

impl Stop {
    fn usage(why: impl ToString) -> Self {
        Self(why.to_string(), USAGE)
    }

    fn environment(why: impl ToString) -> Self {
        Self(why.to_string(), ENVIRONMENT)
    }
}

/// The harness as a program.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Help and version are no errors.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { USAGE } else { 0 });
        }
    };
    clock::start();
    let done = match cli.command {
        Command::Run(run) => run_selection(&run),
        Command::List(selection) => list(&selection),
        Command::Replay(replay) => run_again(&replay),
        Command::Catalogue(catalogue) => catalogue::main(&catalogue),
        Command::Conform(conform) => conform::main(&conform),
        Command::Bench(bench) => bench::main(&bench),
        Command::Vmm { arguments } => {
            return cpr_vmm::main(arguments.into_iter().map(Into::into));
        }
        Command::Guests { extract } => guests(extract.as_deref()),
    };
    done.unwrap_or_else(|Stop(why, code)| {
        eprintln!("cpr-harness: {why}");
        ExitCode::from(code)
    })
}

fn run_selection(run: &Run) -> Result<ExitCode, Stop> {
    let set = select(&run.selection)?;
    let count = set.cases.len();
    let errors = errors_table(run)?;
    let noun = if count == 1 { "case" } else { "cases" };
    say(format_args!("{count} {noun} from {}", set.origin));
    run_cases(
        &set.cases,
        run.jobs.unwrap_or_else(cores),
        &run.vmm,
        run.evidence.clone(),
        run.require_all,
        errors,
    )
}

fn run_again(replay: &Replay) -> Result<ExitCode, Stop> {
    let path = replay.folder.join("case.toml");
    let text = fs::read_to_string(&path)
        .map_err(|e| Stop::usage(format!("cannot read {}: {e}", path.display())))?;
    let case = parse::parse_case(&path.display().to_string(), &text).map_err(Stop::usage)?;
    let beside = || replay.folder.parent().unwrap_or(Path::new(".")).join("replay");
    let evidence = replay.evidence.clone().unwrap_or_else(beside);
    run_cases(&[case], 1, &replay.vmm, evidence, false, None)
}

/// The table of errors that is to be written or compared.
fn errors_table(run: &Run) -> Result<Option<Errors>, Stop> {
    let (path, wish, option) = match (&run.errors, &run.check_errors) {
        (Some(path), _) => (path, Wish::Write, "--errors"),
        (_, Some(path)) => (path, Wish::Check, "--check-errors"),
        _ => return Ok(None),
    };
    if !(run.selection.filter.is_empty() && run.selection.scenarios.is_empty()) {
        let why = format!("{option} takes a run of all cases: leave --filter and SCENARIO out");
        return Err(Stop::usage(why));
    }
    let errors = Errors::new(path, wish);
    errors.map(Some).map_err(|e| Stop::usage(format!("cannot read {}: {e}", path.display())))
}

fn run_cases(
    cases: &[Case],
    jobs: usize,
    vmm: &Vmm,
    evidence: PathBuf,
    require_all: bool,
    mut errors: Option<Errors>,
) -> Result<ExitCode, Stop> {
    signals::guard();
    orphans::adopt();
    let options = Options {
        backend: backend(vmm)?,
        evidence,
        keep: vmm.keep,
        patience: Patience::default(),
        vmm_option: vmm_option(vmm),
    };
    let width = cases.iter().map(|case| case.name.len()).max().unwrap_or(0);
    let mut terminal = Terminal::new(cases.len(), width);
    let mut differences = Differences::embedded().map_err(Stop::usage)?;
    let began = Instant::now();
    schedule::run(cases, jobs, &options, |report| {
        let case = cases.iter().find(|case| case.name == report.case);
        if let (Some(errors), Some(case)) = (&mut errors, case) {
            errors.case(case, &report);
        }
        match differences.of_failure(options.backend.name(), &report) {
            Some(names) => terminal.known(&report, names),
            None => terminal.case(report),
        }
    });
    terminal.finish(began.elapsed());
    let (told, same) = match errors.map(|errors| errors.finish()) {
        None => (Vec::new(), true),
        Some(finished) => finished
            .map_err(|e| Stop::environment(format!("cannot write the table of errors: {e}")))?,
    };
    told.iter().for_each(say);
    let broken = terminal.any_broken() || require_all && terminal.any_missed();
    Ok(ExitCode::from(match (terminal.any_failed() || !same, broken) {
        (true, _) => FAILED,
        (false, true) => ENVIRONMENT,
        (false, false) => 0,
    }))
}

fn backend(vmm: &Vmm) -> Result<Arc<dyn Backend>, Stop> {
    let own = |e: std::io::Error| Stop::environment(format!("cannot find my own binary: {e}"));
    match (vmm.backend, &vmm.vmm) {
        (BackendKind::Mock, _) => Ok(Arc::new(Mock::carried(vmm.fault).map_err(own)?)),
        (BackendKind::CprVmm, None) => {
            Ok(Arc::new(CprVmm::carried().map_err(own)?.with(&vmm.vmm_arg)))
        }
        (BackendKind::CprVmm, Some(path)) => backend_at(path, &vmm.vmm_arg, vmm.accel),
    }
}

/// A QEMU, if it answers as one, else our VMM.
fn backend_at(
    path: &Path,
    more: &[String],
    accelerator: Accelerator,
) -> Result<Arc<dyn Backend>, Stop> {
    if path.as_os_str() == QEMU {
        let why = "no QEMU in ci/.qemu/bin or $PATH: run ci/install-qemu, or give its path";
        let path = qemu::find().ok_or_else(|| Stop::environment(why))?;
        return Ok(Arc::new(Qemu::at(&path, accelerator).map_err(Stop::environment)?));
    }
    match Qemu::at(path, accelerator) {
        Ok(qemu) => return Ok(Arc::new(qemu)),
        Err(e @ (ProbeError::TooOld { .. } | ProbeError::Lacks { .. })) => {
            return Err(Stop::environment(e));
        }
        Err(ProbeError::Start { .. } | ProbeError::NotQemu { .. }) => {}
    }
    match CprVmm::at(path) {
        Ok(backend) => Ok(Arc::new(backend.with(more))),
        Err(e) => Err(Stop::usage(format!("cannot find the VMM {}: {e}", path.display()))),
    }
}

/// The VMM that is called so on the command line.
fn contender(name: &str) -> Result<Arc<dyn Backend>, Stop> {
    let own = |e: std::io::Error| Stop::environment(format!("cannot find my own binary: {e}"));
    Ok(match name {
        "cpr-vmm" => Arc::new(CprVmm::carried().map_err(own)?),
        "mock" => Arc::new(Mock::carried(None).map_err(own)?),
        path => backend_at(Path::new(path), &[], Accelerator::default())?,
    })
}

/// How `replay` is told of it.
fn contender_option(name: &str) -> String {
    match name {
        "cpr-vmm" => String::new(),
        "mock" => " --backend mock".to_owned(),
        name => format!(" --vmm {name}"),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn vmm_option(vmm: &Vmm) -> String {
    let mut option = String::new();
    if let Some(path) = &vmm.vmm {
        option.push_str(&format!(" --vmm {}", path.display()));
    }
    if vmm.accel != Accelerator::default() {
        option.push_str(&format!(" --accel {}", vmm.accel.name()));
    }
    for argument in &vmm.vmm_arg {
        option.push_str(&format!(" --vmm-arg={argument}"));
    }
    if vmm.backend == BackendKind::Mock {
        option.push_str(" --backend mock");
    }
    if let Some(fault) = vmm.fault {
        option.push_str(&format!(" --fault {fault}"));
    }
    option
}

fn select(selection: &Selection) -> Result<Set, Stop> {
    let found = match selection.scenarios.as_slice() {
        [] => Set::find(),
        paths => Set::at(paths),
    };
    let mut set = found.map_err(Stop::usage)?;
    let wanted = &selection.filter;
    // A file that is named is a request too.
    let requested = !(wanted.is_empty() && selection.scenarios.is_empty());
    set.cases.retain(|c| requested || !c.on_request);
    set.cases.retain(|c| wanted.is_empty() || wanted.iter().any(|text| c.name.contains(text)));
    if set.cases.is_empty() {
        return Err(Stop::usage(format!("no case of {} matches {wanted:?}", set.origin)));
    }
    Ok(set)
}

fn list(selection: &Selection) -> Result<ExitCode, Stop> {
    for case in select(selection)?.cases {
        say(format_args!("{}: {}", case.name, case.summary));
    }
    Ok(ExitCode::SUCCESS)
}

fn guests(extract: Option<&Path>) -> Result<ExitCode, Stop> {
    for guest in guest_images::GUESTS {
        say(format_args!("{}: {}", guest.name, guest.summary));
        let Some(folder) = extract else { continue };
        let path = folder.join(format!("{}.elf", guest.name));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, guest.elf))
            .map_err(|e| Stop::environment(format!("cannot write {}: {e}", path.display())))?;
        say(format_args!("  {}", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}
