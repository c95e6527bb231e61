//! The QEMU backend, for QEMU 10.2 or newer.

mod find;
mod probe;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use guest_images::GuestImage;

pub use find::{find, find_anywhere};
pub use probe::ProbeError;

use crate::backend::{
    AcrossExec, Backend, Channels, Dialect, ExecState, Feature, Image, Launch, value_of,
};
use crate::observe::files::Files;
use crate::scenario::{CommandKind, Pages, SerialKind};

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Accelerator {
    /// The kernel, with KVM.
    #[default]
    Kvm,
    /// QEMU's own emulation, for hosts without KVM.
    Tcg,
}

impl Accelerator {
    /// The name on QEMU's command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// A QEMU that can update itself.
#[derive(Clone, Debug)]
pub struct Qemu {
    binary: PathBuf,
    executable: PathBuf,
    version: String,
    accelerator: Accelerator,
    /// Extra arguments: of every process, and of those that take over.
    last: Vec<String>,
    last_of_new: Vec<String>,
}

impl Qemu {
    /// Starts the QEMU at `binary` once to query its version and features.
    pub fn at(binary: &Path, accelerator: Accelerator) -> Result<Self, ProbeError> {
        let probe::Probed { binary, executable, version } = probe::probe(binary)?;
        let (last, last_of_new) = Default::default();
        Ok(Self { binary, executable, version, accelerator, last, last_of_new })
    }

    /// Adds `arguments` after all others.
    pub fn with(mut self, arguments: &[String]) -> Self {
        self.last.extend_from_slice(arguments);
        self
    }

    /// Adds `arguments` when QEMU takes over a VM.
    pub fn with_new(mut self, arguments: &[String]) -> Self {
        self.last_of_new.extend_from_slice(arguments);
        self
    }

    /// The arguments of a QEMU that loads a VM from these `incoming` channels.
    fn new_arguments(&self, launch: Launch<'_>, incoming: &[String]) -> Vec<String> {
        let arguments = arguments(launch, self.accelerator, &self.second_qmp(launch.files));
        let incoming = incoming.iter().flat_map(|uri| ["-incoming".to_owned(), uri.clone()]);
        [arguments, incoming.collect(), self.last.clone(), self.last_of_new.clone()].concat()
    }
}

impl Backend for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn version(&self) -> Option<&str> {
        Some(&self.version)
    }

    fn binary(&self) -> &Path {
        &self.binary
    }

    fn executable(&self) -> &Path {
        &self.executable
    }

    /// A BIOS image, because `-kernel` runs a real BIOS, which is slow on hosts that emulate CPL0.
    fn image<'a>(&self, guest: &'a GuestImage) -> Image<'a> {
        Image { bytes: guest.bios, ending: "bios" }
    }

    fn arguments(&self, launch: Launch<'_>) -> Vec<String> {
        let mut arguments = arguments(launch, self.accelerator, &self.second_qmp(launch.files));
        // Not for an update, in which the run state comes from the saved state.
        if launch.vm.paused {
            arguments.push("-S".into());
        }
        arguments.extend_from_slice(&self.last);
        arguments
    }

    fn update_arguments(&self, launch: Launch<'_>, state: &str) -> Vec<String> {
        self.new_arguments(launch, &[format!("file:{state}")])
    }

    fn transfer_arguments(&self, launch: Launch<'_>, channels: &Channels) -> Vec<String> {
        self.new_arguments(launch, &channels.incoming())
    }

    fn change_arguments(&self, kind: CommandKind, arguments: &mut Vec<String>) {
        let mut set = |option: &str, change: &dyn Fn(&str) -> String| {
            if let Some(value) = value_of(arguments, option).and_then(|at| arguments.get_mut(at)) {
                *value = change(value);
            }
        };
        match kind {
            CommandKind::OtherMemory => {
                set("-m", &|_| "32M".into());
                set("-object", &|backend| {
                    let size = |part: &str| {
                        if part.starts_with("size=") { "size=32M".into() } else { part.to_owned() }
                    };
                    backend.split(',').map(size).collect::<Vec<_>>().join(",")
                });
            }
            CommandKind::OtherCpus => set("-smp", &|_| "7".into()),
            CommandKind::OtherSerial => set("-chardev", &|_| "null,id=serial".into()),
            CommandKind::OtherIncoming => set("-incoming", &|_| "file:/no/such/state".into()),
            CommandKind::NoQmp => remove_all(arguments, "-qmp"),
            CommandKind::NoIncoming => remove_all(arguments, "-incoming"),
            CommandKind::UnknownOption => arguments.push("-no-such-option".into()),
            _ => {}
        }
    }

    /// Another monitor, because each serves a single client.
    fn second_qmp(&self, files: &Files) -> String {
        format!("{}-2", files.qmp)
    }

    fn dialect(&self) -> Dialect {
        Dialect {
            errno_number: false,
            own_words: false,
            private_ram_blocks: false,
            vcpu_threads: None,
            ram_undumped: false,
            across_exec: AcrossExec::Recreated,
            exec_state: ExecState {
                variable: "QEMU_CPR_EXEC_STATE",
                variables: "QEMU_CPR_",
                variable_stays: true,
                state: "/memfd:QEMU_CPR_EXEC_STATE",
                ram: "/memfd:memory-backend-memfd",
            },
        }
    }

    fn lacks(&self, feature: Feature) -> Option<String> {
        let why = match feature {
            Feature::FailPoints => "qemu has no fail points",
            Feature::Rehearsal => "qemu does not rehearse commands",
            Feature::Deadline => "qemu has no deadline for an update",
            Feature::SerialClient => "qemu drops the serial port's client during an update",
            Feature::OpenFiles => "qemu does not hand over open files",
            Feature::OwnBinary if self.binary == self.executable => return None,
            Feature::OwnBinary => "this qemu is started by a script, so another file is executed",
            Feature::HugePagesByMount => {
                "qemu only advises the kernel to use huge pages, and shmem_enabled is not advise"
            }
            Feature::Transfer => return None,
            Feature::Keeper => "qemu has no keeper",
            Feature::Deferred => {
                "qemu drops its clients during an update, so none can tell it what to load"
            }
            Feature::Log => "qemu does not log updates",
            Feature::Linux => "qemu boots guests as firmware here, and Linux is none",
            Feature::Execveat => "qemu uses execvp, which this case forbids",
        };
        Some(why.to_owned())
    }

    fn uses_kvm(&self) -> bool {
        self.accelerator == Accelerator::Kvm
    }
}

fn arguments(launch: Launch<'_>, accelerator: Accelerator, second_qmp: &str) -> Vec<String> {
    let Launch { vm, name, files, .. } = launch;
    let share = if vm.share { "on" } else { "off" };
    let pages = match vm.pages {
        Pages::Small | Pages::Transparent => "",
        Pages::Reserved => ",hugetlb=on,hugetlbsize=2M",
    };
    let cpu = match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    };
    let serial = match vm.serial {
        // Appends, because an updated QEMU must not truncate the file.
        SerialKind::File => format!("file,id=serial,path={},append=on", escaped(&files.serial)),
        SerialKind::Unix => {
            format!("socket,id=serial,path={},server=on,wait=off", escaped(&files.serial_socket))
        }
    };
    let qmp = |path: &str| format!("unix:{},server=on,wait=off", escaped(path));
    let options = [
        ("-name", format!("guest={}", escaped(name))),
        ("-machine", "pc,memory-backend=ram,aux-ram-share=on".into()),
        ("-object", format!("memory-backend-memfd,id=ram,size={},share={share}{pages}", vm.memory)),
        ("-m", vm.memory.to_string()),
        ("-accel", accelerator.name().into()),
        ("-cpu", cpu.into()),
        ("-smp", vm.cpus.to_string()),
        ("-display", "none".into()),
        ("-bios", files.kernel.clone()),
        ("-fw_cfg", format!("name=opt/cpr/cmdline,string={}", escaped(&launch.cmdline()))),
        ("-qmp", qmp(&files.qmp)),
        ("-qmp", qmp(second_qmp)),
        ("-chardev", serial),
        ("-serial", "chardev:serial".into()),
        ("-device", "isa-debug-exit".into()),
        ("-pidfile", files.pid_file.clone()),
    ];
    let plain = ["-nodefaults", "-no-user-config"].map(str::to_owned);
    let valued = options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
    plain.into_iter().chain(valued).collect()
}

/// Escapes a value for QEMU's comma-separated options.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

fn remove_all(arguments: &mut Vec<String>, option: &str) {
    while let Some(at) = value_of(arguments, option) {
        arguments.drain(at - 1..=at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Vm;
    use rstest::rstest;

    fn qemu() -> Qemu {
        Qemu {
            binary: "/q/qemu".into(),
            executable: "/q/ld.so".into(),
            version: "11.1.3".into(),
            accelerator: Accelerator::Kvm,
            last: Vec::new(),
            last_of_new: Vec::new(),
        }
    }

    #[test]
    fn extra_arguments_come_last() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let qemu = qemu().with(&words(&["-d", "int"])).with_new(&words(&["-trace", "x"]));
        let ends = |launch: Launch<'_>, state: Option<&str>, end: &[&str]| {
            let arguments = match state {
                Some(state) => qemu.update_arguments(launch, state),
                None => qemu.arguments(launch),
            };
            assert!(arguments.ends_with(&words(end)), "{arguments:?}");
        };
        let vm = Vm { paused: true, ..Vm::default() };
        with_launch(&vm, |launch| ends(launch, None, &["-S", "-d", "int"]));
        with_launch(&vm, |launch| {
            ends(launch, Some("/s"), &["file:/s", "-d", "int", "-trace", "x"])
        });
    }

    fn with_launch<T>(vm: &Vm, use_it: impl FnOnce(Launch<'_>) -> T) -> T {
        let file = |name: &str| format!("/w/{name}");
        let files = Files {
            kernel: file("guest.bios"),
            initrd: None,
            qmp: file("qmp"),
            serial: file("serial"),
            serial_socket: file("serial.sock"),
            log: file("log"),
            pid_file: file("pid"),
            suffix: String::new(),
        };
        use_it(Launch { vm, seed: 7, name: "a/b[c=1,d=2]", files: &files })
    }

    fn lines(arguments: &[String]) -> String {
        arguments.join(" ").replace(" -", "\n-")
    }

    #[test]
    fn update_arguments_are_start_arguments_plus_incoming() {
        let vm = Vm { cpus: 2, paused: true, cmdline: "markers=1,2".into(), ..Vm::default() };
        let (first, new) = with_launch(&vm, |launch| {
            (qemu().arguments(launch), qemu().update_arguments(launch, "/w/state"))
        });
        insta::assert_snapshot!(lines(&new));
        assert_eq!(first.last().map(String::as_str), Some("-S"));
        assert_eq!(first[..first.len() - 1], new[..new.len() - 2]);
    }

    #[rstest]
    #[case(CommandKind::OtherMemory, "-m 32M")]
    #[case(CommandKind::OtherMemory, "-object memory-backend-memfd,id=ram,size=32M,share=on")]
    #[case(CommandKind::OtherCpus, "-smp 7")]
    #[case(CommandKind::OtherSerial, "-chardev null,id=serial")]
    #[case(CommandKind::OtherIncoming, "-incoming file:/no/such/state")]
    #[case(CommandKind::UnknownOption, "-no-such-option")]
    fn bad_command_changes_arguments(#[case] kind: CommandKind, #[case] has: &str) {
        let vm = Vm::default();
        let good = with_launch(&vm, |launch| qemu().update_arguments(launch, "/w/state"));
        let mut other = good.clone();
        qemu().change_arguments(kind, &mut other);
        assert!(!good.join(" ").contains(has) && other.join(" ").contains(has), "{other:?}");
    }

    #[rstest]
    #[case(CommandKind::NoQmp, "-qmp")]
    #[case(CommandKind::NoIncoming, "-incoming")]
    fn bad_command_removes_arguments(#[case] kind: CommandKind, #[case] lacks: &str) {
        let vm = Vm::default();
        let mut other = with_launch(&vm, |launch| qemu().update_arguments(launch, "/w/state"));
        qemu().change_arguments(kind, &mut other);
        assert!(!other.iter().any(|word| word == lacks), "{other:?}");
    }

    #[test]
    fn script_lacks_own_binary() {
        let direct = Qemu { executable: "/q/qemu".into(), ..qemu() };
        assert!(qemu().lacks(Feature::OwnBinary).is_some());
        assert_eq!(direct.lacks(Feature::OwnBinary), None);
    }
}
