//! Our own VMM, carried by this binary or in a file of its own.

use std::io;
use std::path::{Path, PathBuf};

use super::{Backend, Dialect, Files, Launch};
use crate::carry;
use crate::scenario::SerialKind;

/// `cpr-vmm`.
#[derive(Clone, Debug)]
pub struct CprVmm {
    binary: PathBuf,
    first: Vec<String>,
    last: Vec<String>,
}

impl CprVmm {
    /// The one this binary carries.
    pub fn carried() -> io::Result<Self> {
        Ok(Self { binary: carry::own_binary()?, first: vec![carry::VMM.into()], last: Vec::new() })
    }

    /// The one that another build of the harness carries.
    pub fn carried_by(binary: &Path) -> io::Result<Self> {
        Ok(Self {
            binary: std::fs::canonicalize(binary)?,
            first: vec![carry::VMM.into()],
            last: Vec::new(),
        })
    }

    /// Another build of it.
    pub fn at(binary: &Path) -> io::Result<Self> {
        Ok(Self { binary: std::fs::canonicalize(binary)?, first: Vec::new(), last: Vec::new() })
    }

    /// With `arguments` after all others.
    pub fn with(mut self, arguments: &[String]) -> Self {
        self.last.extend_from_slice(arguments);
        self
    }
}

impl Backend for CprVmm {
    fn name(&self) -> &'static str {
        "cpr-vmm"
    }

    fn binary(&self) -> &Path {
        &self.binary
    }

    fn arguments(&self, launch: Launch<'_>) -> Vec<String> {
        [self.first.clone(), arguments(launch), self.last.clone()].concat()
    }

    fn update_arguments(&self, launch: Launch<'_>, state: &str) -> Vec<String> {
        [self.arguments(launch), incoming(state)].concat()
    }

    fn dialect(&self) -> Dialect {
        DIALECT
    }

    fn uses_kvm(&self) -> bool {
        true
    }
}

/// The habits of our VMM.
pub(super) const DIALECT: Dialect = Dialect { errno_number: true, rehearses: true };

/// The command line of our VMM, which the mock shares.
pub(super) fn arguments(launch: Launch<'_>) -> Vec<String> {
    let Launch { vm, seed, name, files } = launch;
    let cmdline = format!("seed={seed} cpus={} {}", vm.cpus, vm.cmdline);
    let share = if vm.share { "on" } else { "off" };
    let memory = format!("{},share={share},pages={}", vm.memory, vm.pages.as_str());
    let mut arguments: Vec<String> = [
        ("--kernel", files.kernel.clone()),
        ("--cmdline", cmdline.trim_end().to_owned()),
        ("--memory", memory),
        ("--cpus", vm.cpus.to_string()),
        ("--qmp", format!("unix:{}", files.qmp)),
        ("--serial", serial(vm.serial, files)),
        ("--name", name.to_owned()),
        ("--pid-file", files.pid_file.clone()),
        ("--log", "debug".into()),
        ("--log-file", files.log.clone()),
    ]
    .into_iter()
    .flat_map(|(option, value)| [option.to_owned(), value])
    .collect();
    if vm.paused {
        arguments.push("--paused".into());
    }
    arguments
}

fn serial(kind: SerialKind, files: &Files) -> String {
    match kind {
        SerialKind::File => format!("file:{}", files.serial),
        SerialKind::Unix => format!("unix:{}", files.serial_socket),
    }
}

/// What the command line of an updated VMM has besides.
pub(super) fn incoming(state: &str) -> Vec<String> {
    vec!["--incoming".into(), format!("file:{state}")]
}
