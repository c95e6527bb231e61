//! Our own VMM, carried by this binary or in a separate file.

mod build;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use build::Build;

use crate::backend::{
    AcrossExec, Backend, Channels, Dialect, ExecState, Feature, Launch, UNDER_A_WRAPPER, value_of,
};
use crate::carry;
use crate::observe::files::Files;
use crate::scenario::{CommandKind, Device, Inject, Keeper, Mode, SerialKind, Stalled};

/// The name in reports.
pub const NAME: &str = "cpr-vmm";

/// The backend of `cpr-vmm`.
#[derive(Clone, Debug)]
pub struct CprVmm {
    binary: PathBuf,
    first: Vec<String>,
    last: Vec<String>,
    /// Additional last arguments, only for a VMM that takes over a VM.
    last_of_new: Vec<String>,
    /// The program that starts it, and its arguments.
    wrapper: Vec<String>,
    /// The version, if known.
    version: Option<String>,
    /// The git revision, if known.
    revision: Option<String>,
    /// The build, if it is not the carried one, which has all features.
    build: Option<Build>,
    /// Whether it has a keeper; queried once.
    keeper: Arc<OnceLock<bool>>,
    /// Why it lacks a mode, if so; queried once.
    modes: Arc<Mutex<BTreeMap<Mode, Option<String>>>>,
}

impl CprVmm {
    /// The VMM that this binary carries.
    pub fn carried() -> io::Result<Self> {
        let version = Some(env!("CARGO_PKG_VERSION").to_owned());
        let revision = Some(crate::REVISION.to_owned());
        Ok(Self { version, revision, ..Self::carried_by(&carry::own_binary()?)? })
    }

    /// The VMM that another build of the harness carries.
    pub fn carried_by(binary: &Path) -> io::Result<Self> {
        Ok(Self {
            binary: std::fs::canonicalize(binary)?,
            first: vec![carry::VMM.into()],
            last: Vec::new(),
            last_of_new: Vec::new(),
            wrapper: Vec::new(),
            version: None,
            revision: None,
            build: None,
            keeper: Arc::default(),
            modes: Arc::default(),
        })
    }

    /// Another build: a `cpr-vmm`, or a harness that carries one.
    pub fn at(binary: &Path) -> io::Result<Self> {
        let build = Build::at(binary)?;
        let Build { binary, first, version, revision, .. } = build.clone();
        let (last, last_of_new) = Default::default();
        let (keeper, modes) = Default::default();
        let build = Some(build);
        let wrapper = Vec::new();
        Ok(Self {
            binary,
            first,
            last,
            last_of_new,
            wrapper,
            version,
            revision,
            build,
            keeper,
            modes,
        })
    }

    /// Whether the build has a keeper; a build without one rejects the option.
    fn has_keeper(&self) -> bool {
        *self.keeper.get_or_init(|| build::accepts(&self.binary, &self.first, &["--keeper", "off"]))
    }

    /// Why the build lacks `mode`, if so: it refuses to set the mode, or to use it. If it cannot be
    /// asked, the case itself shows why.
    fn lacks_mode(&self, mode: Mode) -> Option<String> {
        let mut modes = self.modes.lock().unwrap_or_else(PoisonError::into_inner);
        let ask = || build::refusal_of(mode, &self.binary, &self.first).unwrap_or_default();
        let why = modes.entry(mode).or_insert_with(ask).as_ref()?;
        Some(format!("{NAME} does not support {}: {why}", mode.name()))
    }

    /// Adds `arguments` after all others.
    pub fn with(mut self, arguments: &[String]) -> Self {
        self.last.extend_from_slice(arguments);
        self
    }

    /// Starts it under `wrapper`.
    pub fn under(mut self, wrapper: &[String]) -> Self {
        self.wrapper = wrapper.to_vec();
        self
    }

    /// Adds `arguments` when the VMM takes over a VM.
    pub fn with_new(mut self, arguments: &[String]) -> Self {
        self.last_of_new.extend_from_slice(arguments);
        self
    }
}

impl Backend for CprVmm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    fn binary(&self) -> &Path {
        &self.binary
    }

    fn executable(&self) -> &Path {
        self.build.as_ref().map_or(&self.binary, |build| &build.executable)
    }

    fn wrapper(&self) -> &[String] {
        &self.wrapper
    }

    fn arguments(&self, launch: Launch<'_>) -> Vec<String> {
        let keeper = launch.vm.keeper.filter(|_| self.has_keeper()).map(keeper_arguments);
        let keeper = keeper.map_or(Vec::new(), Vec::from);
        let asks = self.build.as_ref().is_none_or(|build| build.test_device_option);
        let device = if asks { TEST_DEVICE.map(str::to_owned).to_vec() } else { Vec::new() };
        [self.first.clone(), arguments(launch), device, keeper, self.last.clone()].concat()
    }

    fn update_arguments(&self, launch: Launch<'_>, state: &str) -> Vec<String> {
        [self.arguments(launch), self.last_of_new.clone(), incoming(state)].concat()
    }

    fn transfer_arguments(&self, launch: Launch<'_>, channels: &Channels) -> Vec<String> {
        let mut arguments = self.arguments(launch);
        // It would keep the guest stopped there, whatever it did before.
        arguments.retain(|word| word != "--paused");
        [arguments, self.last_of_new.clone(), transfer(channels)].concat()
    }

    fn change_arguments(&self, kind: CommandKind, arguments: &mut Vec<String>) {
        change_arguments(kind, arguments);
    }

    fn dialect(&self) -> Dialect {
        DIALECT
    }

    fn lacks(&self, feature: Feature) -> Option<String> {
        if feature == Feature::Keeper && !self.has_keeper() {
            return Some(format!("{} has no option --keeper", self.binary.display()));
        }
        if let Feature::Mode(mode) = feature
            && mode.moves()
        {
            return self.lacks_mode(mode);
        }
        if feature == Feature::QemuOptions {
            return Some(format!("{NAME} takes no options of QEMU"));
        }
        if feature == Feature::OwnBinary && !self.wrapper.is_empty() {
            return Some(UNDER_A_WRAPPER.to_owned());
        }
        let build = self.build.as_ref()?;
        let path = build.binary.display();
        let lacks = |parameter| (!build.has_parameter(parameter)).then_some(parameter);
        let parameter = match feature {
            Feature::FailPoints if !build.fail_points => {
                let build_it = "build it with --features failpoints";
                return Some(format!("{path} has no fail points: {build_it}"));
            }
            Feature::OwnBinary if build.binary != build.executable => {
                return Some(format!("{path} is a script, so another file is executed"));
            }
            Feature::Rehearsal => lacks("x-cpr-exec-rehearsal"),
            Feature::Deadline => lacks("x-cpr-exec-deadline"),
            Feature::MaxDowntime => lacks("x-max-downtime"),
            _ => None,
        };
        parameter.map(|name| format!("{path} has no migration parameter {name}"))
    }

    fn unsupported_fault(&self, fault: &Inject) -> Option<String> {
        let build = self.build.as_ref()?;
        let Inject { point, action } = fault;
        let path = build.binary.display();
        match build.knows(fault) {
            Ok(true) => None,
            Ok(false) => Some(format!("{path} has no fail point {point}={action}")),
            Err(e) => Some(format!("cannot ask {path} for fail point {point}={action}: {e}")),
        }
    }

    fn uses_kvm(&self) -> bool {
        true
    }
}

/// Enables the devices by which guests end the VMM and report their progress to the harness.
const TEST_DEVICE: [&str; 2] = ["--test-device", "on"];

/// How our VMM behaves where VMMs differ.
pub(crate) const DIALECT: Dialect = Dialect {
    errno_number: true,
    own_words: true,
    private_ram_blocks: true,
    vcpu_threads: Some("vcpu"),
    ram_undumped: true,
    ram_file_close_on_exec: true,
    close_on_exec: true,
    pid_file: true,
    removes_its_channel: true,
    counts_copied_ram: true,
    across_exec: AcrossExec::Kept,
    exec_state: ExecState {
        variable: "CPR_EXEC_STATE",
        variables: "CPR_EXEC_",
        variable_stays: false,
        state: "/memfd:cpr-state",
        ram: "/memfd:pc.ram",
    },
};

/// The limit of a slow entropy device: far less than a guest asks for at once.
const SLOW: &str = ",max-bytes=1024,period=5";

/// The command line of our VMM, which the mock shares.
pub(super) fn arguments(launch: Launch<'_>) -> Vec<String> {
    let Launch { vm, name, files, .. } = launch;
    let share = if vm.share { "on" } else { "off" };
    let file = if vm.memory_file { format!(",file={}", files.ram) } else { String::new() };
    let memory = format!("{},share={share},pages={}{file}", vm.memory, vm.pages.as_str());
    let log = if vm.stalled.is_some() { "trace" } else { "debug" };
    let mut arguments: Vec<String> = [
        ("--kernel", files.kernel.clone()),
        ("--cmdline", launch.cmdline()),
        ("--memory", memory),
        ("--cpus", vm.cpus.to_string()),
        ("--qmp", format!("unix:{}", files.qmp)),
        ("--serial", serial(vm.serial, files)),
        ("--name", name.to_owned()),
        ("--pid-file", files.pid_file.clone()),
        ("--log", log.into()),
    ]
    .into_iter()
    .flat_map(|(option, value)| [option.to_owned(), value])
    .collect();
    if !vm.stalled.is_some_and(Stalled::is_stderr) {
        arguments.extend(["--log-file".into(), files.log.clone()]);
    }
    for device in &vm.devices {
        let limit = match device {
            Device::VirtioRng => "",
            Device::SlowVirtioRng => SLOW,
        };
        arguments.extend(["--device".into(), format!("{}{limit}", device.kind())]);
    }
    if let Some(initrd) = &files.initrd {
        arguments.extend(["--initrd".into(), initrd.clone()]);
    }
    if vm.paused {
        arguments.push("--paused".into());
    }
    arguments
}

/// The additional arguments if a scenario selects a keeper.
pub(super) fn keeper_arguments(keeper: Keeper) -> [String; 2] {
    ["--keeper".to_owned(), keeper.as_str().to_owned()]
}

fn serial(kind: SerialKind, files: &Files) -> String {
    match kind {
        SerialKind::File => format!("file:{}", files.serial),
        SerialKind::Unix => format!("unix:{}", files.serial_socket),
    }
}

/// The additional arguments of a VMM that waits on `channels`.
pub(super) fn transfer(channels: &Channels) -> Vec<String> {
    channels.incoming().into_iter().flat_map(|uri| ["--incoming".to_owned(), uri]).collect()
}

/// The additional arguments of an updated VMM.
pub(super) fn incoming(state: &str) -> Vec<String> {
    vec!["--incoming".into(), format!("file:{state}")]
}

/// Changes the command line of a good update to that of a bad `kind`.
pub(super) fn change_arguments(kind: CommandKind, arguments: &mut Vec<String>) {
    let change = match kind {
        CommandKind::OtherMemory => {
            value_of(arguments, "--memory").map(|at| (at, "32M".to_owned()))
        }
        CommandKind::OtherCpus => value_of(arguments, "--cpus").map(|at| (at, "7".to_owned())),
        CommandKind::OtherSerial => {
            value_of(arguments, "--serial").map(|at| (at, "null".to_owned()))
        }
        CommandKind::Deferred => {
            value_of(arguments, "--incoming").map(|at| (at, "defer".to_owned()))
        }
        CommandKind::OtherIncoming => {
            value_of(arguments, "--incoming").map(|at| (at, "file:/no/such/state".to_owned()))
        }
        _ => None,
    };
    if let Some((at, value)) = change {
        arguments[at] = value;
    }
    let removed = match kind {
        CommandKind::NoQmp => value_of(arguments, "--qmp"),
        CommandKind::NoIncoming => value_of(arguments, "--incoming"),
        _ => None,
    };
    if let Some(at) = removed {
        arguments.drain(at - 1..=at);
    }
    let more: &[&str] = match kind {
        CommandKind::UnknownOption => &["--no-such-option"],
        CommandKind::OlderState => &["--x-state-version", "0"],
        CommandKind::NewerState => &["--x-state-version", "99"],
        _ => &[],
    };
    arguments.extend(more.iter().map(|&word| word.to_owned()));
}
