//! The Cloud Hypervisor backend. Its update is a local migration: a new process gets RAM by descriptor
//! and the state through a socket (`cpr-transfer` in QEMU's terms); a migration over a socket copies RAM
//! (`normal`).

mod api;
mod monitor;
mod process;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::backend::control::Control;
use crate::backend::probe_process::output_of;
use crate::backend::{
    AcrossExec, Backend, Channels, Dialect, Feature, Launch, UNDER_A_WRAPPER, cpr_vmm,
};
use crate::observe::files::Files;
use crate::scenario::{CommandKind, Mode, Pages, SerialKind};
use process::Process;

/// The first word of its version.
const NAME: &str = "cloud-hypervisor";

/// A build of Cloud Hypervisor.
#[derive(Clone, Debug)]
pub struct CloudHypervisor {
    binary: PathBuf,
    version: String,
    wrapper: Vec<String>,
    /// Extra arguments: of every process, and of those that take over.
    last: Vec<String>,
    last_of_new: Vec<String>,
}

impl CloudHypervisor {
    /// The build at `binary`, if that is one.
    pub fn at(binary: &Path) -> io::Result<Option<Self>> {
        let said = output_of(Command::new(binary).arg("--version"))?.unwrap_or_default();
        let Some(version) = version(&said) else { return Ok(None) };
        let (wrapper, last, last_of_new) = Default::default();
        let binary = binary.canonicalize()?;
        Ok(Some(Self { binary, version, wrapper, last, last_of_new }))
    }

    /// Adds `arguments` to those of every process.
    pub fn with(mut self, arguments: &[String]) -> Self {
        self.last.extend_from_slice(arguments);
        self
    }

    /// Adds `arguments` when a process takes over a VM.
    pub fn with_new(mut self, arguments: &[String]) -> Self {
        self.last_of_new.extend_from_slice(arguments);
        self
    }

    /// Starts every process by the program `wrapper`.
    pub fn under(self, wrapper: &[String]) -> Self {
        Self { wrapper: wrapper.to_vec(), ..self }
    }

    /// The arguments of every process.
    fn common_arguments(&self, files: &Files) -> Vec<String> {
        let options = [
            ("--api-socket", format!("path={}", quoted(&api_socket(files)))),
            ("--event-monitor", format!("path={}", quoted(&events(files).to_string_lossy()))),
            ("--log-file", files.log.clone()),
        ];
        options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect()
    }
}

/// The version in the output of `--version`, if that is of Cloud Hypervisor.
fn version(said: &str) -> Option<String> {
    let mut words = said.split_whitespace();
    (words.next() == Some(NAME)).then(|| words.next().unwrap_or_default().to_owned())
}

/// A value in a list of options, which commas would end.
fn quoted(value: &str) -> String {
    format!("\"{}\"", value.replace('"', "\"\""))
}

/// The socket of the API, named after that on which the harness serves QMP.
fn api_socket(files: &Files) -> String {
    format!("{}-api", files.qmp)
}

/// The FIFO for reports.
fn events(files: &Files) -> PathBuf {
    format!("{}-events", files.qmp).into()
}

impl Backend for CloudHypervisor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> Option<&str> {
        Some(&self.version)
    }

    fn binary(&self) -> &Path {
        &self.binary
    }

    fn wrapper(&self) -> &[String] {
        &self.wrapper
    }

    fn arguments(&self, launch: Launch<'_>) -> Vec<String> {
        let Launch { vm, files, .. } = launch;
        let on = |on: bool| if on { "on" } else { "off" };
        let pages = match vm.pages {
            Pages::Small | Pages::Transparent => "",
            Pages::Reserved => ",hugepages=on,hugepage_size=2M",
        };
        let ram = format!("size={},shared={}{pages}", vm.memory.0, on(vm.share));
        let memory = match vm.memory_file {
            true => vec!["--memory".to_owned(), "size=0".to_owned(), "--memory-zone".to_owned(), {
                format!("id=ram,{ram},file={}", quoted(&files.ram))
            }],
            false => vec!["--memory".to_owned(), ram],
        };
        let serial = match vm.serial {
            SerialKind::File => format!("file={}", quoted(&files.serial)),
            SerialKind::Unix => format!("socket={}", quoted(&files.serial_socket)),
        };
        let options = [
            ("--kernel", files.kernel.clone()),
            ("--cmdline", launch.cmdline()),
            ("--cpus", format!("boot={}", vm.cpus)),
            ("--serial", serial),
            ("--console", "off".to_owned()),
        ];
        let options =
            options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect();
        [self.common_arguments(files), options, memory, self.last.clone()].concat()
    }

    /// Never used: it does not update by exec.
    fn update_arguments(&self, launch: Launch<'_>, _state: &str) -> Vec<String> {
        self.common_arguments(launch.files)
    }

    /// The new process learns of the VM, and of the channels, through its API.
    fn transfer_arguments(&self, launch: Launch<'_>, _channels: &Channels) -> Vec<String> {
        let own = [self.common_arguments(launch.files), self.last.clone()].concat();
        [own, self.last_of_new.clone()].concat()
    }

    /// Uses only the main channel, for descriptors, state and RAM.
    fn channels(&self, channels: Channels) -> Channels {
        Channels { cpr: None, ..channels }
    }

    fn change_arguments(&self, kind: CommandKind, arguments: &mut Vec<String>) {
        if kind == CommandKind::UnknownOption {
            arguments.push("--no-such-option".into());
        }
    }

    fn control(
        &self,
        launch: Launch<'_>,
        incoming: Option<&Channels>,
    ) -> io::Result<Option<Arc<dyn Control>>> {
        let files = launch.files;
        let waits = incoming.is_some();
        let process = Process::new(
            api_socket(files).into(),
            &events(files),
            files.log.clone().into(),
            waits,
        )?;
        Ok(Some(Arc::new(process)))
    }

    fn control_socket(&self, files: &Files) -> Option<String> {
        Some(api_socket(files))
    }

    fn dialect(&self) -> Dialect {
        Dialect {
            errno_number: false,
            own_words: false,
            private_ram_blocks: false,
            vcpu_threads: None,
            ram_undumped: false,
            ram_file_close_on_exec: true,
            // It does not update by exec, and gives no eventfd the flag.
            close_on_exec: false,
            pid_file: false,
            removes_its_channel: false,
            counts_copied_ram: false,
            across_exec: AcrossExec::Recreated,
            // Never used: it does not update by exec.
            exec_state: cpr_vmm::DIALECT.exec_state,
        }
    }

    fn lacks(&self, feature: Feature) -> Option<String> {
        let why = match feature {
            Feature::Mode(Mode::CprTransfer | Mode::Normal) => return None,
            Feature::Mode(Mode::CprExec) => "cloud-hypervisor does not update by exec",
            Feature::Mode(Mode::CprReboot) => "cloud-hypervisor does not keep RAM in its file",
            Feature::FailPoints => "cloud-hypervisor has no fail points",
            Feature::Rehearsal => "cloud-hypervisor does not rehearse commands",
            Feature::Deadline => "cloud-hypervisor has no deadline for a local migration",
            Feature::MaxDowntime => "cloud-hypervisor does not limit the blackout of an update",
            Feature::Prelaunch => "cloud-hypervisor starts the guest with its process",
            Feature::Snapshot => "cloud-hypervisor is not driven through its snapshots",
            Feature::OwnMachine => "cloud-hypervisor gets its machine from the old process",
            Feature::Cancel => "cloud-hypervisor has no request to cancel a migration",
            Feature::SerialClient => "cloud-hypervisor drops the client of the serial port",
            Feature::OpenFiles => "cloud-hypervisor does not hand over open files",
            Feature::OwnBinary if !self.wrapper.is_empty() => UNDER_A_WRAPPER,
            Feature::OwnBinary => return None,
            Feature::HugePagesByMount => {
                "cloud-hypervisor only advises the kernel to use huge pages"
            }
            Feature::Keeper => "cloud-hypervisor has no keeper",
            Feature::Deferred => "cloud-hypervisor does not load a saved state by exec",
            Feature::Log => "cloud-hypervisor logs no updates",
            Feature::Linux => "cloud-hypervisor is only driven with the guests of this project",
            Feature::QemuOptions => "cloud-hypervisor is not QEMU",
            Feature::Execveat => "cloud-hypervisor does not update by exec",
        };
        Some(why.to_owned())
    }

    fn uses_kvm(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("cloud-hypervisor v48.0-12-gabc\n", Some("v48.0-12-gabc"))]
    #[case("cpr-vmm 0.1.0\n", None)]
    #[case("", None)]
    fn version_tells_what_it_is(#[case] said: &str, #[case] expected: Option<&str>) {
        assert_eq!(version(said).as_deref(), expected);
    }
}
