//! The `soak` command.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;

use super::setup::Ready;
use super::vmm::{Vmm, backend, vmm_option};
use super::{CliError, ENVIRONMENT, FAILED};
use crate::process::signals::Ending;
use crate::report::stdout::say;
use crate::run::{Options, Report, Verdict};
use crate::scenario::size::Size;
use crate::scenario::{Setbacks, check_made};
use crate::soak::cases::{SoakConfig, cases};
use crate::soak::screen::Screen;
use crate::soak::{Limits, Soaking, describe, disk_usage, lines};

/// Refresh interval of a terminal.
const DRAWN: Duration = Duration::from_millis(500);

#[derive(Args)]
pub(super) struct Soak {
    /// How long to run, such as 30m [default: until SIGINT or SIGTERM].
    #[arg(long = "for", value_name = "TIME")]
    time: Option<humantime::Duration>,
    /// Stop after this many successful updates, over all VMs.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    updates: Option<u64>,
    /// VMs to run in parallel.
    #[arg(long, value_name = "K", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..))]
    vms: u16,
    /// Guests of the VMs, assigned in turn [default: pattern, timer, registers, smp, clock,
    /// interrupts, heartbeat, mmio].
    #[arg(long, value_name = "GUEST", value_delimiter = ',')]
    guest: Vec<String>,
    /// RAM sizes of the VMs, assigned in turn [default: 64M, 128M, 96M].
    #[arg(long, value_name = "SIZE", value_delimiter = ',')]
    memory: Vec<Size>,
    /// Numbers of vCPUs of the VMs, up to 8, assigned in turn [default: 1, 2].
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: Vec<u32>,
    /// Seed of update times, setbacks and guest choices [default: the current time].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Whether to mix in updates that must be refused or rolled back.
    #[arg(long, value_enum, default_value = "some")]
    setbacks: Setbacks,
    /// How often to print progress.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    interval: humantime::Duration,
    #[command(flatten)]
    vmm: Vmm,
    /// Folder for evidence.
    #[arg(long, default_value = "evidence", value_name = "DIR")]
    evidence: PathBuf,
}

/// Runs `soak`.
pub(super) fn main(soak: &Soak) -> Result<ExitCode, CliError> {
    if soak.interval.is_zero() {
        return Err(CliError::usage("--interval must be more than 0s"));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let wish = SoakConfig {
        vms: soak.vms.into(),
        guests: soak.guest.clone(),
        memory: soak.memory.clone(),
        cpus: soak.cpus.clone(),
        seed: soak.seed.unwrap_or(now.as_secs()),
        setbacks: soak.setbacks,
    };
    let cases = cases(&wish);
    cases.iter().try_for_each(check_made).map_err(CliError::usage)?;
    let limits = Limits { updates: soak.updates, time: soak.time.map(Into::into) };
    let soaking = Arc::new(Soaking::new(&cases, limits));
    let ending = soaking.clone();
    let stop = move |_| {
        ending.stop();
        true
    };
    let ready = Ready::new(&soak.evidence, Ending::Asked(Box::new(stop)))?;
    let backend = backend(&soak.vmm)?;
    let options = ready.options(backend, soak.evidence.clone(), vmm_option(&soak.vmm));
    let options = Options { keep: soak.vmm.keep, ..options };
    let s = if cases.len() == 1 { "" } else { "s" };
    say(format_args!("{} VM{s}, seed {}", cases.len(), wish.seed));
    let reports = match std::io::stdout().is_terminal() {
        true => {
            let screen = Screen::new(cases.len());
            let reports = soaking.run(&cases, &options, DRAWN, |soaking| screen.show(soaking));
            screen.clear();
            reports
        }
        false => soaking.run(&cases, &options, soak.interval.into(), |soaking| {
            say(lines::interval(soaking));
        }),
    };
    lines::summary(&soaking, disk_usage(&options.evidence.join("soak"))).iter().for_each(say);
    Ok(tell(&soaking, &reports))
}

/// Prints the failures and returns the exit status.
fn tell(soaking: &Soaking, reports: &[Report]) -> ExitCode {
    let (mut failed, mut broken, mut ran) = (false, false, false);
    for (index, report) in reports.iter().enumerate() {
        let vm = describe(index, &soaking.board().lane(index));
        match &report.verdict {
            Verdict::Pass => ran = true,
            Verdict::Fail(findings) => {
                failed = true;
                let begun = soaking.board().lane(index).begun;
                findings
                    .iter()
                    .for_each(|finding| say(format_args!("{vm}, update {begun}: {finding}")));
                report.repro_commands().iter().for_each(|line| say(format_args!("  {line}")));
                if let Some((pid, socket)) = &report.kept {
                    say(format_args!("  its VMM is still running: PID {pid}, QMP socket {socket}"));
                }
            }
            Verdict::Ignored(why) => say(format_args!("{vm} was skipped: {why}")),
            Verdict::Broken(why) => {
                broken = true;
                say(format_args!("{vm} could not be run: {why}"));
            }
        }
    }
    // A run that ends before its first update has no result.
    let updates: u32 = soaking.board().lanes().iter().map(|lane| lane.updates).sum();
    if ran && !failed && !broken {
        say(if updates > 0 { "no damage" } else { "no update was done: there is no result" });
    }
    ExitCode::from(match (failed, broken || updates == 0) {
        (true, _) => FAILED,
        (false, true) => ENVIRONMENT,
        (false, false) => 0,
    })
}
