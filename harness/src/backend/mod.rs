//! How to start and reach a VMM. Nothing else in the harness knows which one it is.

mod asked;
pub mod cpr_vmm;
pub mod dialect;
pub mod file_hash;
pub mod mock;
pub mod qemu;
pub mod skew;

use std::path::Path;

use guest_images::GuestImage;

pub use dialect::{Dialect, Feature, Handover, OverExec};

use crate::scenario::{CommandKind, Inject, SerialKind, Vm};

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

impl Launch<'_> {
    /// What the guest is told.
    pub fn cmdline(&self) -> String {
        let line = format!("seed={} cpus={} {}", self.seed, self.vm.cpus, self.vm.cmdline);
        line.trim_end().to_owned()
    }
}

/// The files of one VM; all paths are UTF-8, because QMP is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The guest's image.
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

impl Files {
    /// The sockets that the VMM of `vm` listens on.
    pub fn sockets(&self, vm: &Vm) -> Vec<&str> {
        let serial = (vm.serial == SerialKind::Unix).then_some(&*self.serial_socket);
        std::iter::once(&*self.qmp).chain(serial).collect()
    }
}

/// An image of a guest and how its files are called.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// The image.
    pub bytes: &'a [u8],
    /// The ending of its name.
    pub ending: &'static str,
}

/// One kind of VMM.
pub trait Backend: Send + Sync {
    /// Its name, for reports.
    fn name(&self) -> &'static str;

    /// Its version, where it has told one.
    fn version(&self) -> Option<&str> {
        None
    }

    /// Its name and version, for people.
    fn title(&self) -> String {
        [Some(self.name()), self.version()].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// The file to execute.
    fn binary(&self) -> &Path;

    /// What `/proc/PID/exe` is then: another file where the first is a script.
    fn executable(&self) -> &Path {
        self.binary()
    }

    /// The build that the next update goes to, after `done` of a VM's updates have succeeded;
    /// none: this one.
    fn next(&self, done: u32) -> Option<&dyn Backend> {
        let _ = done;
        None
    }

    /// The image with which it boots a guest.
    fn image<'a>(&self, guest: &'a GuestImage) -> Image<'a> {
        Image { bytes: guest.elf, ending: "elf" }
    }

    /// The arguments that boot the VM.
    fn arguments(&self, launch: Launch<'_>) -> Vec<String>;

    /// The arguments with which the updated VMM takes the VM over from `state`.
    fn update_arguments(&self, launch: Launch<'_>, state: &str) -> Vec<String>;

    /// Makes the arguments of a good update those of `kind`, where that is a matter of arguments.
    fn change_arguments(&self, kind: CommandKind, arguments: &mut Vec<String>);

    /// The QMP socket of a second client.
    fn second_qmp(&self, files: &Files) -> String {
        files.qmp.clone()
    }

    /// What it promises.
    fn dialect(&self) -> Dialect;

    /// Why it has not what a case needs, if it has not.
    fn lacks(&self, feature: Feature) -> Option<String>;

    /// Why it cannot be made to fail so, if it cannot and has fail points.
    fn lacks_fault(&self, fault: &Inject) -> Option<String> {
        let _ = fault;
        None
    }

    /// Its VM is one of KVM's.
    fn uses_kvm(&self) -> bool;
}

/// Where the value of `option` stands.
fn value_of(arguments: &[String], option: &str) -> Option<usize> {
    arguments.iter().position(|word| word == option).map(|at| at + 1)
}
