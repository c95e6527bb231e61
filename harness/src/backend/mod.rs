//! How to start and reach a VMM. Nothing else in the harness knows which one it is.

pub mod cpr_vmm;
pub mod mock;

use std::path::Path;

use crate::scenario::Vm;

/// What a VMM is started for.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The virtual machine.
    pub vm: &'a Vm,
    /// The guest's seed.
    pub seed: u64,
    /// The name of the case.
    pub name: &'a str,
    /// Its files.
    pub files: &'a Files,
}

/// The files of one VM; all paths are UTF-8, because QMP is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The guest's ELF image.
    pub kernel: String,
    /// The QMP socket.
    pub qmp: String,
    /// What the guest says on its serial port.
    pub serial: String,
    /// The socket of the serial port, where it has one.
    pub serial_socket: String,
    /// The VMM's log.
    pub log: String,
    /// The VMM's PID file.
    pub pid_file: String,
}

/// In what VMMs that do the same may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Errors give the number of the errno besides its text.
    pub errno_number: bool,
    /// Commands are rehearsed before the guest stops, if `x-cpr-exec-rehearsal` says so.
    pub rehearses: bool,
    /// It has fail points.
    pub fail_points: bool,
}

/// One kind of VMM.
pub trait Backend: Send + Sync {
    /// Its name, for reports.
    fn name(&self) -> &'static str;

    /// Its name and version, for people.
    fn title(&self) -> String;

    /// The file to execute.
    fn binary(&self) -> &Path;

    /// The arguments that boot the VM.
    fn arguments(&self, launch: Launch<'_>) -> Vec<String>;

    /// The arguments with which the updated VMM takes the VM over from `state`.
    fn update_arguments(&self, launch: Launch<'_>, state: &str) -> Vec<String>;

    /// Its habits.
    fn dialect(&self) -> Dialect;

    /// Its VM is one of KVM's.
    fn uses_kvm(&self) -> bool;
}
