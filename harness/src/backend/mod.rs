//! How to start and reach a VMM. The rest of the harness does not depend on which VMM it is.

pub mod channels;
pub mod cloud_hypervisor;
pub mod control;
pub mod cpr_vmm;
pub mod dialect;
pub mod file_hash;
pub mod mock;
mod probe_process;
pub mod qemu;
pub mod skew;

use std::io;
use std::path::Path;
use std::sync::Arc;

use control::Control;
use guest_images::GuestImage;

use crate::observe::files::Files;
use crate::observe::host;
use crate::observe::mailbox::MAILBOX_GPA;
use crate::scenario::{CommandKind, Inject, Ring, Vm};
pub use channels::Channels;
pub use cloud_hypervisor::CloudHypervisor;
pub use dialect::{AcrossExec, Dialect, ExecState, Feature};

/// The parameters of a VMM's start.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The virtual machine.
    pub vm: &'a Vm,
    /// The guest's seed.
    pub seed: u64,
    /// The name of the case.
    pub name: &'a str,
    /// The files of the VM.
    pub files: &'a Files,
}

impl Launch<'_> {
    /// The guest's command line.
    pub fn cmdline(&self) -> String {
        let Self { vm: Vm { cpus, ring, cmdline, .. }, seed, .. } = self;
        let ring = if *ring == Ring::Kernel { "ring=0 " } else { "" };
        // See guest-images/runtime/ports.rs.
        let ports = if host::is_below_tcg() { "ports=iopl " } else { "" };
        let linux = if self.vm.is_linux() { linux_words() } else { String::new() };
        format!("{linux}seed={seed} cpus={cpus} {ring}{ports}{cmdline}").trim_end().to_owned()
    }
}

/// What a Linux guest needs on its command line: its warnings on the serial port, the mailbox's page
/// kept from the kernel, and a reset, which the harness notices, after a panic.
fn linux_words() -> String {
    format!("console=ttyS0 loglevel=5 memmap=4K${MAILBOX_GPA:#x} panic=-1 ")
}

/// An image of a guest and the extension of its file name.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// The image.
    pub bytes: &'a [u8],
    /// The extension of its file name.
    pub ending: &'static str,
}

/// One kind of VMM.
pub trait Backend: Send + Sync {
    /// The VMM's name, for reports.
    fn name(&self) -> &'static str;

    /// The VMM's version, if it reports one.
    fn version(&self) -> Option<&str> {
        None
    }

    /// The git revision that the VMM was built from, if it reports one.
    fn revision(&self) -> Option<&str> {
        None
    }

    /// The VMM's name and version, for display.
    fn title(&self) -> String {
        [Some(self.name()), self.version()].into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    /// The file to execute.
    fn binary(&self) -> &Path;

    /// The target of `/proc/PID/exe`: another file if the binary is a script.
    fn executable(&self) -> &Path {
        self.binary()
    }

    /// The words before the binary's path when the VMM is started: a program that starts it, and its
    /// arguments.
    fn wrapper(&self) -> &[String] {
        &[]
    }

    /// The build that the next update goes to, after `done` successful updates of a VM; none: this
    /// one.
    fn next(&self, done: u32) -> Option<&dyn Backend> {
        let _ = done;
        None
    }

    /// The image that boots a guest on this VMM.
    fn image<'a>(&self, guest: &'a GuestImage) -> Image<'a> {
        Image { bytes: guest.elf, ending: "elf" }
    }

    /// The arguments that boot the VM.
    fn arguments(&self, launch: Launch<'_>) -> Vec<String>;

    /// The arguments for an updated VMM that takes over the VM from `state`.
    fn update_arguments(&self, launch: Launch<'_>, state: &str) -> Vec<String>;

    /// The arguments for a new VMM that waits on `channels` to take over the VM (`cpr-transfer`).
    fn transfer_arguments(&self, launch: Launch<'_>, channels: &Channels) -> Vec<String>;

    /// Returns those of `channels` that the VMM uses for an update to another process.
    fn channels(&self, channels: Channels) -> Channels {
        channels
    }

    /// Changes the arguments of a good update to those of `kind`, if they differ.
    fn change_arguments(&self, kind: CommandKind, arguments: &mut Vec<String>);

    /// The QMP socket of a second client.
    fn second_qmp(&self, files: &Files) -> String {
        files.qmp.clone()
    }

    /// How to control a process that is about to be started, which may wait on `incoming` for a VM;
    /// none if it serves QMP itself.
    fn control(
        &self,
        launch: Launch<'_>,
        incoming: Option<&Channels>,
    ) -> io::Result<Option<Arc<dyn Control>>> {
        let _ = (launch, incoming);
        Ok(None)
    }

    /// The socket on which such a process takes requests.
    fn control_socket(&self, files: &Files) -> Option<String> {
        let _ = files;
        None
    }

    /// How the VMM behaves where VMMs differ.
    fn dialect(&self) -> Dialect;

    /// Why this feature is unsupported, if so.
    fn lacks(&self, feature: Feature) -> Option<String>;

    /// Why this fault is unsupported, if so and the VMM has fail points.
    fn unsupported_fault(&self, fault: &Inject) -> Option<String> {
        let _ = fault;
        None
    }

    /// Whether its VMs use KVM.
    fn uses_kvm(&self) -> bool;
}

/// Why a VMM under a wrapper has no binary of its own.
const UNDER_A_WRAPPER: &str = "the VMM is started by a wrapper, so another file is executed";

/// The index of the value of `option`.
fn value_of(arguments: &[String], option: &str) -> Option<usize> {
    arguments.iter().position(|word| word == option).map(|at| at + 1)
}
