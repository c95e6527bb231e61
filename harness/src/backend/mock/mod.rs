//! A mock VMM: it speaks QMP, has RAM with a fake guest, updates itself with a real `exec` or to a
//! process that waits, and misbehaves on request. It proves that every check can fail.

mod checkpoint;
mod continued;
mod failpoint;
pub mod fault;
mod guest;
mod handover;
mod keeper;
mod machine;
mod migrate;
mod process_faults;
mod ram;
mod server;
mod start;
mod transfer;
mod waiting;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use super::{Backend, Channels, Dialect, Feature, Launch, cpr_vmm};
use crate::carry;
use crate::scenario::size::Size;
use crate::scenario::{CommandKind, Inject, Keeper as Policy, Mode};
pub use fault::Fault;

/// The mock as a backend.
#[derive(Clone, Debug)]
pub struct Mock {
    binary: PathBuf,
    fault: Option<Fault>,
}

impl Mock {
    /// The mock that this binary carries.
    pub fn carried(fault: Option<Fault>) -> io::Result<Self> {
        Ok(Self { binary: carry::own_binary()?, fault })
    }

    /// The mock that another binary carries.
    pub fn at(binary: &Path, fault: Option<Fault>) -> io::Result<Self> {
        Ok(Self { binary: std::fs::canonicalize(binary)?, fault })
    }
}

impl Backend for Mock {
    fn name(&self) -> &'static str {
        "mock"
    }

    fn binary(&self) -> &Path {
        &self.binary
    }

    fn arguments(&self, launch: Launch<'_>) -> Vec<String> {
        let mut first = vec![carry::MOCK_VMM.to_owned()];
        if let Some(fault) = self.fault {
            first.extend(["--fault".to_owned(), fault.to_string()]);
        }
        let keeper = launch.vm.keeper.map(cpr_vmm::keeper_arguments).map_or(Vec::new(), Vec::from);
        [first, cpr_vmm::arguments(launch), keeper].concat()
    }

    fn update_arguments(&self, launch: Launch<'_>, state: &str) -> Vec<String> {
        [self.arguments(launch), cpr_vmm::incoming(state)].concat()
    }

    fn transfer_arguments(&self, launch: Launch<'_>, channels: &Channels) -> Vec<String> {
        [self.arguments(launch), cpr_vmm::transfer(channels)].concat()
    }

    fn change_arguments(&self, kind: CommandKind, arguments: &mut Vec<String>) {
        cpr_vmm::change_arguments(kind, arguments);
    }

    fn dialect(&self) -> Dialect {
        cpr_vmm::DIALECT
    }

    fn lacks(&self, feature: Feature) -> Option<String> {
        match feature {
            Feature::Rehearsal => Some("the mock does not rehearse commands".into()),
            Feature::Deferred => Some("the mock does not wait for migrate-incoming".into()),
            Feature::Log => Some("the mock logs to regular files only".into()),
            Feature::Linux => Some("the mock does not boot Linux".into()),
            Feature::QemuOptions => Some("the mock takes no options of QEMU".into()),
            Feature::Mode(mode @ (Mode::CprReboot | Mode::Normal)) => {
                Some(format!("the mock does not support {}", mode.name()))
            }
            Feature::Deadline => Some("the mock has no deadline for an update".into()),
            Feature::MaxDowntime => Some("the mock does not limit the blackout".into()),
            _ => None,
        }
    }

    fn unsupported_fault(&self, fault: &Inject) -> Option<String> {
        let Inject { point, action } = fault;
        let has = failpoint::ACTIONS.contains(&action.as_str())
            && failpoint::POINTS.iter().any(|p| p.name == point);
        (!has).then(|| format!("the mock has no fail point {point}={action}"))
    }

    /// It uses KVM only to have a second VM: on a busy host without hardware virtualization,
    /// ending a VM takes seconds.
    fn uses_kvm(&self) -> bool {
        self.fault == Some(Fault::SecondVm)
    }
}

/// The command line.
#[derive(Clone, Debug, Parser)]
#[command(name = "mock-vmm", disable_version_flag = true)]
struct Args {
    #[arg(long)]
    fault: Option<Fault>,
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long, default_value = "")]
    cmdline: String,
    #[arg(long)]
    memory: String,
    #[arg(long)]
    cpus: usize,
    #[arg(long)]
    qmp: String,
    #[arg(long)]
    serial: String,
    #[arg(long)]
    name: String,
    #[arg(long)]
    pid_file: PathBuf,
    #[arg(long)]
    log: String,
    #[arg(long)]
    log_file: PathBuf,
    #[arg(long)]
    paused: bool,
    #[arg(long)]
    incoming: Vec<String>,
    #[arg(long, value_parser = policy, default_value = "update")]
    keeper: Policy,
    #[arg(long)]
    failpoint: Vec<String>,
}

fn policy(word: &str) -> Result<Policy, String> {
    let all = [Policy::On, Policy::Update, Policy::Off];
    all.into_iter()
        .find(|policy| policy.as_str() == word)
        .ok_or_else(|| "expected on, update or off".to_owned())
}

impl Args {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Whether it takes over a VM.
    fn takes_over(&self) -> bool {
        !self.incoming.is_empty()
    }

    fn memory_bytes(&self) -> io::Result<u64> {
        let size = self.memory.split(',').next().unwrap_or_default();
        size.parse().map(|size: Size| size.0).map_err(io::Error::other)
    }

    fn socket(&self) -> &str {
        self.qmp.strip_prefix("unix:").unwrap_or(&self.qmp)
    }

    fn serial_socket(&self) -> Option<&str> {
        self.serial.strip_prefix("unix:")
    }

    fn shared_ram(&self) -> bool {
        !self.memory.contains("share=off")
    }
}

/// Runs the mock from the command line.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = std::iter::once(OsString::from("mock-vmm")).chain(args);
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::from(2);
        }
    };
    let blocked = server::endings().thread_block().map_err(io::Error::from);
    match blocked.and_then(|()| machine::Machine::start(args)).and_then(server::serve) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("mock-vmm: {e}");
            ExitCode::FAILURE
        }
    }
}
