//! A host in a box: runs the harness on real KVM, in a machine that QEMU emulates.
//!
//! QEMU boots a Debian kernel with an initramfs that [`initramfs`] makes. Its first process is this binary
//! again ([`init`]), which runs the command. Everything but the kernel's console goes through ports of
//! its own: the command's input and output, and [`messages`] about its start, its end and its terminal.

pub mod accelerator;
pub mod error;
pub mod init;
pub mod initramfs;
pub mod machine;
pub mod messages;
pub mod modules;
pub mod qemu;
pub mod restart;
pub mod session;
pub mod settings;
pub mod terminal;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::kernels::Kernel;
use crate::lab::accelerator::Accelerator;
use crate::observe::host;
use crate::scenario::size::Size;

/// The name of the harness in a lab, and its place.
pub const PROGRAM: &str = "/bin/cpr-harness";

/// The place of busybox in a lab.
pub const BUSYBOX: &str = "/bin/busybox";

/// The place of the kernels in a lab.
pub const KERNELS: &str = "/lab/kernels";

/// The environment variable that says, in a lab, which arguments of the harness outside started it.
pub const VARIABLE: &str = host::LAB;

/// In a lab: the arguments with which the harness outside runs a command in one like this, quoted for a shell.
pub fn outside() -> Option<String> {
    std::env::var(VARIABLE).ok().filter(|arguments| !arguments.is_empty())
}

/// Folders of a lab that a shared one would hide.
const OWN: [&str; 10] =
    ["/bin", "/sbin", "/usr/bin", "/usr/sbin", "/dev", "/proc", "/sys", "/lab", "/tmp", "/run"];

/// Returns why `folder` cannot be shared with a lab, if so.
pub fn not_shareable(folder: &Path) -> Option<String> {
    let own = OWN.iter().find(|own| folder == Path::new(own));
    let inside = ["/dev", "/proc", "/sys", "/lab"].iter().find(|own| folder.starts_with(own));
    match (folder.is_dir(), own.or(inside)) {
        (false, _) => Some("it is not a folder".into()),
        (true, _) if folder == Path::new("/") => Some("it holds the whole system".into()),
        (true, Some(own)) => Some(format!("a lab has a {own} of its own")),
        (true, None) => None,
    }
}

/// An emulated host.
#[derive(Clone, Debug)]
pub struct Lab {
    /// The QEMU that emulates it.
    pub qemu: PathBuf,
    /// Its kernel.
    pub kernel: Kernel,
    /// The folder of kernels that it finds, for guests.
    pub kernels: Option<PathBuf>,
    /// A static busybox, for a shell and for programs that scenarios use.
    pub busybox: Option<PathBuf>,
    /// Number of CPUs.
    pub cpus: u32,
    /// Its memory.
    pub memory: Size,
    /// What executes its instructions.
    pub accelerator: Accelerator,
    /// Whether it has an IOMMU.
    pub iommu: bool,
    /// Devices for pass-through, as QEMU's `-device` takes them.
    pub devices: Vec<String>,
    /// Number of huge pages of 2 MiB to reserve.
    pub huge_pages: u32,
    /// Memory that outlives a restart of its kernel; 0 for none.
    pub kept_memory: Size,
    /// Folders that it shares with this host at the same path, writable.
    pub shares: Vec<PathBuf>,
    /// How long the command may run.
    pub timeout: Option<Duration>,
    /// Keep the folder with the console's log.
    pub keep: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_the_lab_itself_are_not_shared() {
        for folder in ["/", "/dev/shm", "/proc", "/tmp", "/nothing"] {
            assert!(not_shareable(Path::new(folder)).is_some(), "{folder}");
        }
        assert_eq!(not_shareable(tempfile::tempdir().unwrap().path()), None);
    }
}
