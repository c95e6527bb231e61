//! The `lab` command.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{CliError, complain};
use crate::backend::qemu;
use crate::kernels::{Kernel, KernelError, Kernels};
use crate::lab::accelerator::Choice;
use crate::lab::qemu::MAX_DEVICES;
use crate::lab::session::{Events, Outcome};
use crate::lab::settings::Command;
use crate::lab::{self, BUSYBOX, KERNELS, terminal};
use crate::run::case::quoted;
use crate::scenario::size::Size;

/// The least memory of a lab: its kernel, this binary and some VMs.
const LEAST: Size = Size(1 << 30);

/// The most memory that can outlive a restart, and the least memory of a lab that has some.
const MOST_KEPT: Size = Size(512 << 20);
const LEAST_WITH_KEPT: Size = Size(3 << 30);

/// Variables that the command gets from the environment, beside those that begin with `CPR_`.
const PASSED: [&str; 11] = [
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "COLUMNS",
    "LINES",
    "RUST_BACKTRACE",
    "GITHUB_ACTIONS",
    "LANG",
    "TZ",
];

#[derive(Args)]
pub(super) struct Lab {
    /// Command of the harness to run in the lab, with its arguments.
    #[arg(trailing_var_arg = true, required_unless_present = "shell", value_name = "COMMAND")]
    command: Vec<String>,
    /// Run a shell instead; at a terminal, Ctrl-] ends it.
    #[arg(long, conflicts_with = "command")]
    shell: bool,
    /// CPUs of the lab [default: 1 if it is emulated, else 2].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: Option<u32>,
    /// Memory of the lab.
    #[arg(long, value_name = "SIZE", default_value_t = Size(4 << 30))]
    memory: Size,
    /// Kernel: a series such as 6 or 7 of those that ci/install-lab installs, a vmlinuz, or a folder
    /// with vmlinuz and modules [default: the newest installed].
    #[arg(long, value_name = "SERIES|FILE|DIR")]
    kernel: Option<String>,
    /// Give the lab an IOMMU.
    #[arg(long)]
    iommu: bool,
    /// PCI device to pass through to VMs, as QEMU's -device takes it, such as edu; can be repeated,
    /// implies --iommu.
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,
    /// Huge pages of 2 MiB to reserve in the lab.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    huge_pages: u32,
    /// Memory that outlives a restart of the lab's kernel, up to 512M; scenarios with the step restart-host need it.
    #[arg(long, value_name = "SIZE")]
    kept_memory: Option<Size>,
    /// What executes the lab's instructions.
    #[arg(long, value_enum, default_value_t)]
    accel: Choice,
    /// Another folder to share with the lab, writable, at the same path; the working directory is
    /// shared always. Can be repeated.
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// End the command after this time.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<std::time::Duration>,
    /// Keep the folder with the log of the lab's console.
    #[arg(long)]
    keep: bool,
}

/// Runs `lab`.
pub(super) fn main(options: Lab) -> Result<ExitCode, CliError> {
    check(&options.command)?;
    let events = Events::new();
    let folder = std::env::current_dir()
        .map_err(|e| CliError::usage(format!("cannot find the working directory: {e}")))?;
    let lab = lab(&options, &folder)?;
    let raw = options.shell && io::IsTerminal::is_terminal(&io::stdin());
    let command = command(&options, folder, raw)?;
    let cpus = if lab.cpus == 1 { "1 CPU".to_owned() } else { format!("{} CPUs", lab.cpus) };
    complain(&format!(
        "lab: Linux {}, {cpus}, {} of memory, {}",
        lab.kernel.release,
        lab.memory,
        lab.accelerator.title()
    ));
    let mut restored = None;
    let done = events.run(&lab, command, || {
        restored = raw.then(terminal::Raw::new).and_then(Result::ok);
    });
    drop(restored);
    let (outcome, kept) = done.map_err(CliError::environment)?;
    if let Some(folder) = kept {
        complain(&format!("lab: kept {}", folder.display()));
    }
    Ok(ExitCode::from(match outcome {
        Outcome::Ended(status) => status,
        Outcome::Signalled(signal) => 128 + signal as u8,
    }))
}

/// Checks the command before the lab boots.
fn check(command: &[String]) -> Result<(), CliError> {
    let Some(first) = command.first() else { return Ok(()) };
    if first == "lab" {
        return Err(CliError::usage("cannot run a lab in a lab"));
    }
    let words = std::iter::once(super::PROGRAM).chain(command.iter().map(String::as_str));
    match super::command().try_get_matches_from(words) {
        Ok(_) => Ok(()),
        // Help is one, too.
        Err(e) => e.exit(),
    }
}

fn lab(options: &Lab, folder: &Path) -> Result<lab::Lab, CliError> {
    if options.memory.0 < LEAST.0 {
        let why = format!("invalid --memory {}: a lab needs at least {LEAST}", options.memory);
        return Err(CliError::usage(why));
    }
    check_kept_memory(options)?;
    if options.device.len() > MAX_DEVICES {
        return Err(CliError::usage(format!("a lab has at most {MAX_DEVICES} devices")));
    }
    let qemu = qemu::find_anywhere().ok_or_else(|| {
        CliError::environment("no QEMU in ci/.qemu/bin or $PATH: run ci/install-qemu")
    })?;
    let accelerator = options.accel.decide();
    let installed = Kernels::find();
    let kernel = kernel(options.kernel.as_deref(), &installed)?;
    let mut shares = Vec::new();
    for path in std::iter::once(folder).chain(options.share.iter().map(PathBuf::as_path)) {
        let whole = path.canonicalize().map_err(|e| {
            CliError::usage(format!("cannot share {} with the lab: {e}", path.display()))
        })?;
        if let Some(why) = lab::not_shareable(&whole) {
            let path = path.display();
            let why = format!("cannot share {path} with the lab: {why}; use another folder");
            return Err(CliError::usage(why));
        }
        shares.push(whole);
    }
    let busybox = installed.as_ref().ok().and_then(Kernels::busybox);
    let needs_busybox = match () {
        () if options.shell => Some("--shell"),
        () if options.kept_memory.is_some() => Some("--kept-memory"),
        () => None,
    };
    if let Some(option) = needs_busybox.filter(|_| busybox.is_none()) {
        let why = format!("no busybox next to the kernels, for {option}: run ci/install-lab");
        return Err(CliError::environment(why));
    }
    Ok(lab::Lab {
        qemu,
        kernel,
        kernels: installed.as_ref().ok().map(|kernels| kernels.folder().to_owned()),
        busybox,
        cpus: options.cpus.unwrap_or(accelerator.usual_cpus()),
        memory: options.memory,
        accelerator,
        iommu: options.iommu || !options.device.is_empty(),
        devices: options.device.clone(),
        huge_pages: options.huge_pages,
        kept_memory: options.kept_memory.unwrap_or(Size(0)),
        shares,
        timeout: options.timeout,
        keep: options.keep,
    })
}

fn check_kept_memory(options: &Lab) -> Result<(), CliError> {
    let Some(kept) = options.kept_memory else { return Ok(()) };
    let why = match () {
        () if kept.0 > MOST_KEPT.0 => format!("at most {MOST_KEPT} can outlive a restart"),
        () if kept.0 == 0 || kept.0 % (2 << 20) != 0 => "not a multiple of 2M".to_owned(),
        () if options.memory.0 < LEAST_WITH_KEPT.0 => {
            format!("--memory must then be at least {LEAST_WITH_KEPT}")
        }
        () => return Ok(()),
    };
    Err(CliError::usage(format!("invalid --kept-memory {kept}: {why}")))
}

/// The kernel that is asked for, else the newest.
fn kernel(
    wanted: Option<&str>,
    installed: &Result<Kernels, KernelError>,
) -> Result<Kernel, CliError> {
    let is_series = |wanted: &str| {
        wanted.starts_with(|first: char| first.is_ascii_digit())
            && wanted.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    };
    match (wanted, installed) {
        (Some(wanted), _) if !is_series(wanted) => {
            Kernel::named(Path::new(wanted)).map_err(CliError::usage)
        }
        (_, Err(e)) => Err(CliError::environment(e)),
        (Some(series), Ok(kernels)) => {
            kernels.of_series(series).cloned().map_err(CliError::environment)
        }
        (None, Ok(kernels)) => Ok(kernels.newest().clone()),
    }
}

fn command(options: &Lab, folder: PathBuf, raw: bool) -> Result<Command, CliError> {
    let words = match options.shell {
        true => vec!["sh".to_owned()],
        false => {
            let program = std::env::args_os().next().unwrap_or_default();
            let program = program.to_string_lossy().into_owned();
            std::iter::once(program).chain(options.command.iter().cloned()).collect()
        }
    };
    Ok(Command {
        file: if options.shell { BUSYBOX } else { lab::PROGRAM }.into(),
        arguments: words,
        environment: environment(prefix(options)),
        folder,
        terminals: terminal::terminals(raw),
    })
}

/// The arguments of this process up to the command, quoted for a shell. In a shell of the lab there is no need
/// to start one.
fn prefix(options: &Lab) -> String {
    if options.shell {
        return String::new();
    }
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let own = words.len().saturating_sub(options.command.len());
    let quoted: Vec<_> = words[..own].iter().map(|word| quoted(&word.to_string_lossy())).collect();
    quoted.join(" ")
}

fn environment(prefix: String) -> Vec<(String, String)> {
    let passed = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| PASSED.contains(&name.as_str()) || name.starts_with("CPR_"))
        .filter(|(name, _)| name != crate::kernels::VARIABLE)
        .filter(|(name, _)| name != lab::VARIABLE);
    let own = [
        ("PATH", "/bin".to_owned()),
        ("HOME", "/root".to_owned()),
        (lab::VARIABLE, prefix),
        (crate::kernels::VARIABLE, KERNELS.to_owned()),
    ];
    passed.chain(own.map(|(name, value)| (name.to_owned(), value))).collect()
}
