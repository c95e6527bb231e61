//! The QEMU backend, for QEMU 10.2 or newer.

mod accelerator;
mod arguments;
mod find;
mod probe;
mod setup;
mod trial;

use std::path::{Path, PathBuf};

use guest_images::GuestImage;

pub use accelerator::{Accelerator, UnknownAccelerator};
use arguments::arguments;
pub use find::{find, find_anywhere};
pub use probe::ProbeError;
pub use setup::Setup;

use crate::backend::{
    AcrossExec, Backend, Channels, Dialect, ExecState, Feature, Image, Launch, UNDER_A_WRAPPER,
    value_of,
};
use crate::observe::files::Files;
use crate::scenario::CommandKind;

/// A QEMU that can update itself.
#[derive(Clone, Debug)]
pub struct Qemu {
    binary: PathBuf,
    executable: PathBuf,
    version: String,
    setup: Setup,
    /// Extra arguments: of every process, and of those that take over.
    last: Vec<String>,
    last_of_new: Vec<String>,
}

impl Qemu {
    /// Starts the QEMU at `binary` once to query its version and features.
    pub fn at(binary: &Path, setup: Setup) -> Result<Self, ProbeError> {
        let probe::Probed { binary, executable, version } = probe::probe(binary)?;
        let (last, last_of_new) = Default::default();
        Ok(Self { binary, executable, version, setup, last, last_of_new })
    }

    /// Starts a paused VM with the machine and all arguments, and ends it.
    pub fn try_out(&self) -> Result<(), ProbeError> {
        trial::start(self)
    }

    /// Adds `arguments` to those of every process.
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
        let arguments = self.common_arguments(launch);
        let incoming = incoming.iter().flat_map(|uri| ["-incoming".to_owned(), uri.clone()]);
        // The channels last: the arguments before them are those of the old QEMU.
        [arguments, self.last_of_new.clone(), incoming.collect()].concat()
    }

    /// The arguments of every process: the harness's, the scenario's, and those of the command line.
    fn common_arguments(&self, launch: Launch<'_>) -> Vec<String> {
        let own = arguments(launch, &self.setup, &self.second_qmp(launch.files));
        [&own, &launch.vm.qemu.args, &self.setup.arguments, &self.last].map(Vec::as_slice).concat()
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

    fn wrapper(&self) -> &[String] {
        &self.setup.wrapper
    }

    /// A BIOS image, because `-kernel` runs a real BIOS, which is slow on hosts that emulate CPL0.
    fn image<'a>(&self, guest: &'a GuestImage) -> Image<'a> {
        Image { bytes: guest.bios, ending: "bios" }
    }

    fn arguments(&self, launch: Launch<'_>) -> Vec<String> {
        let mut arguments = self.common_arguments(launch);
        // Not for an update, in which the run state comes from the saved state.
        if launch.vm.paused {
            arguments.push("-S".into());
        }
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
            ram_file_close_on_exec: false,
            close_on_exec: true,
            pid_file: true,
            removes_its_channel: true,
            counts_copied_ram: true,
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
            Feature::MaxDowntime => "qemu does not limit the blackout of an update by exec",
            Feature::SerialClient => "qemu drops the serial port's client during an update",
            Feature::OpenFiles => "qemu does not hand over open files",
            Feature::OwnBinary if !self.setup.wrapper.is_empty() => UNDER_A_WRAPPER,
            Feature::OwnBinary if self.binary == self.executable => return None,
            Feature::OwnBinary => "this qemu is started by a script, so another file is executed",
            Feature::HugePagesByMount => {
                "qemu only advises the kernel to use huge pages, and shmem_enabled is not advise"
            }
            Feature::Mode(_)
            | Feature::QemuOptions
            | Feature::Prelaunch
            | Feature::Snapshot
            | Feature::OwnMachine
            | Feature::Cancel => return None,
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
        self.setup.accelerator.is_kvm()
    }
}

fn remove_all(arguments: &mut Vec<String>, option: &str) {
    while let Some(at) = value_of(arguments, option) {
        arguments.drain(at - 1..=at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Migrate, Mode, QemuVm, Vm};
    use rstest::rstest;

    fn qemu() -> Qemu {
        Qemu {
            binary: "/q/qemu".into(),
            executable: "/q/ld.so".into(),
            version: "11.1.3".into(),
            setup: Setup::default(),
            last: Vec::new(),
            last_of_new: Vec::new(),
        }
    }

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    /// Both command lines have the same arguments, and end with what only one of them has.
    #[test]
    fn extra_arguments_are_in_both_command_lines() {
        let setup = Setup { arguments: words("-device b"), ..Setup::default() };
        let qemu = Qemu { setup, ..qemu() }.with(&words("-d int")).with_new(&words("-trace x"));
        let extra = QemuVm { machine: None, args: words("-device a") };
        let vm = Vm { paused: true, qemu: extra, ..Vm::default() };
        let transfer = Migrate { mode: Mode::CprTransfer, ..Migrate::default() };
        let channels = Channels::waiting(&transfer, "/w".as_ref(), 1).unwrap();
        with_launch(&vm, |launch| {
            for (arguments, end) in [
                (qemu.arguments(launch), "-S"),
                (qemu.update_arguments(launch, "/s"), "-trace x -incoming file:/s"),
            ] {
                let end = words(&format!("-device a -device b -d int {end}"));
                assert!(arguments.ends_with(&end), "{arguments:?}");
            }
            let transfer = qemu.transfer_arguments(launch, &channels).join(" ");
            assert!(transfer.contains("-device a -device b -d int -trace x -incoming "));
        });
    }

    #[rstest]
    #[case(None, None, "pc")]
    #[case(None, Some("microvm"), "microvm")]
    #[case(Some("q35,hpet=off"), None, "q35,hpet=off")]
    #[case(Some("q35"), Some("microvm"), "q35")]
    fn machine_of_the_command_line_comes_first(
        #[case] chosen: Option<&str>,
        #[case] of_scenario: Option<&str>,
        #[case] expected: &str,
    ) {
        let machine = chosen.map(str::to_owned);
        let qemu = Qemu { setup: Setup { machine, ..Setup::default() }, ..qemu() };
        let of_vm = QemuVm { machine: of_scenario.map(str::to_owned), args: Vec::new() };
        let vm = Vm { qemu: of_vm, ..Vm::default() };
        let expected = format!("-machine {expected},memory-backend=ram,aux-ram-share=on");
        with_launch(&vm, |launch| {
            for arguments in [qemu.arguments(launch), qemu.update_arguments(launch, "/s")] {
                assert!(arguments.join(" ").contains(&expected), "{arguments:?}");
            }
        });
    }

    fn with_launch<T>(vm: &Vm, use_it: impl FnOnce(Launch<'_>) -> T) -> T {
        let file = |name: &str| format!("/w/{name}");
        let files = Files {
            kernel: file("guest.bios"),
            initrd: None,
            ram: file("ram"),
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
    fn scripts_and_wrappers_lack_an_own_binary() {
        let direct = Qemu { executable: "/q/qemu".into(), ..qemu() };
        let wrapper = words("nice -n 3");
        let wrapped = Qemu { setup: Setup { wrapper, ..Setup::default() }, ..direct.clone() };
        assert!(qemu().lacks(Feature::OwnBinary).is_some());
        assert!(wrapped.lacks(Feature::OwnBinary).is_some());
        assert_eq!(direct.lacks(Feature::OwnBinary), None);
    }
}
