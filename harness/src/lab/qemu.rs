//! The command line of the QEMU that emulates a lab.

use std::os::fd::RawFd;
use std::path::Path;

use super::Lab;
use super::accelerator::Accelerator;
use super::messages::PORTS;
use super::settings::{FILE, Share};
use super::{PROGRAM, init};
use crate::scenario::size::Size;

/// The slot of the first device for pass-through on PCI bus 0; QEMU gives others the first free ones.
const FIRST_SLOT: usize = 0x10;

/// The most devices: the slots from there to 0x1e, below the chipset's.
pub const MAX_DEVICES: usize = 0x1f - FIRST_SLOT;

/// What QEMU gets beside the lab's own settings.
pub struct Files<'a> {
    /// The initramfs.
    pub initramfs: &'a Path,
    /// The console's log.
    pub console: &'a Path,
    /// The sockets for the ports, in the order of [`PORTS`].
    pub ports: [RawFd; PORTS.len()],
    /// The shared folders.
    pub shares: &'a [Share],
}

/// Returns the PCI address of each device for pass-through.
pub fn addresses(devices: &[String]) -> Vec<String> {
    (0..devices.len()).map(|index| format!("0000:00:{:02x}.0", FIRST_SLOT + index)).collect()
}

/// Returns QEMU's arguments.
pub fn arguments(lab: &Lab, files: &Files<'_>) -> Vec<String> {
    let mut arguments = Arguments::default();
    let machine = match (lab.accelerator, lab.iommu) {
        // Interrupt remapping needs it.
        (Accelerator::Kvm, true) => "q35,kernel-irqchip=split",
        _ => "q35",
    };
    arguments.add("-machine", machine);
    match lab.accelerator {
        Accelerator::Kvm => {
            arguments.add("-accel", "kvm");
            arguments.add("-cpu", "host");
        }
        Accelerator::Tcg => {
            // With a thread for each CPU, TCG breaks the kernel's nested VMs after some 50 cases.
            arguments.add("-accel", "tcg,thread=single");
            arguments.add("-cpu", "max,+svm");
        }
    }
    arguments.add("-smp", lab.cpus.to_string());
    arguments.add("-m", format!("{}M", lab.memory.0 >> 20));
    for each in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        arguments.flag(each);
    }
    arguments.add("-display", "none");
    arguments.add("-chardev", format!("file,id=console,path={}", escaped(files.console)));
    arguments.add("-serial", "chardev:console");
    arguments.add("-kernel", lab.kernel.vmlinuz.display().to_string());
    arguments.add("-initrd", files.initramfs.display().to_string());
    arguments.add("-append", kernel_arguments(lab));
    if lab.iommu {
        // Before the devices that it translates for.
        arguments.add("-device", "intel-iommu,intremap=on,caching-mode=on");
    }
    arguments.add("-device", "virtio-serial-pci,id=ports");
    for ((name, socket), number) in PORTS.iter().zip(files.ports).zip(1..) {
        arguments.add("-chardev", format!("socket,id={name},fd={socket}"));
        let port = format!("virtserialport,bus=ports.0,nr={number},chardev={name},name={name}");
        arguments.add("-device", port);
    }
    for Share { tag, source, read_only, .. } in files.shares {
        let (source, only) = (escaped(source), if *read_only { "on" } else { "off" });
        let folder = format!("local,id={tag},path={source},security_model=none,readonly={only}");
        arguments.add("-fsdev", format!("{folder},multidevs=remap"));
        arguments.add("-device", format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    }
    for (index, device) in lab.devices.iter().enumerate() {
        arguments.add("-device", format!("{device},bus=pcie.0,addr={:#x}", FIRST_SLOT + index));
    }
    arguments.0
}

fn kernel_arguments(lab: &Lab) -> String {
    let mut words = vec!["console=ttyS0", "loglevel=4", "panic=-1"];
    if lab.accelerator == Accelerator::Tcg {
        // The emulated TSC is right, but calibrating it and watching it takes long.
        words.extend(["tsc=reliable", "nokaslr", "mitigations=off"]);
    }
    if lab.iommu {
        words.push("intel_iommu=on");
    }
    let kept = kept_memory(lab.kept_memory);
    words.extend(kept.as_deref());
    let first = format!("rdinit={PROGRAM}");
    words.extend([first.as_str(), "--", init::NAME, FILE]);
    words.join(" ")
}

/// What makes the kernel treat `size` bytes from 1 GiB on as persistent memory. The memory of a lab is
/// contiguous up to 2 GiB at least; below that, the initramfs has the end, and the kernel the beginning.
fn kept_memory(size: Size) -> Option<String> {
    (size.0 > 0).then(|| format!("memmap={}M!1G", size.0 >> 20))
}

/// A path as a value of an option, in which a comma is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn add(&mut self, name: &str, value: impl Into<String>) {
        self.flag(name);
        self.0.push(value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Kernel;
    use rstest::rstest;

    fn lab(accelerator: Accelerator) -> Lab {
        Lab {
            qemu: "/q/qemu".into(),
            kernel: Kernel {
                release: "7.3.4".into(),
                vmlinuz: "/k/7.3.4/vmlinuz".into(),
                modules: "/k/7.3.4/modules".into(),
            },
            kernels: Some("/k".into()),
            busybox: None,
            cpus: 2,
            memory: Size(4 << 30),
            accelerator,
            iommu: false,
            devices: Vec::new(),
            huge_pages: 0,
            kept_memory: Size(0),
            shares: Vec::new(),
            timeout: None,
            keep: false,
        }
    }

    #[rstest]
    #[case::emulated("tcg", lab(Accelerator::Tcg))]
    #[case::pass_through(
        "pass-through",
        Lab {
            iommu: true,
            devices: vec!["edu".into(), "edu,dma_mask=0xffffffff".into()],
            kept_memory: Size(512 << 20),
            ..lab(Accelerator::Kvm)
        }
    )]
    fn command_line(#[case] name: &str, #[case] lab: Lab) {
        let share = |tag: &str, path: &str, read_only| Share {
            tag: tag.into(),
            path: path.into(),
            source: path.into(),
            read_only,
        };
        let files = Files {
            initramfs: "/t/initramfs".as_ref(),
            console: "/t/a,b/console.log".as_ref(),
            ports: [3, 4, 5, 6],
            shares: &[share("kernels", "/k", true), share("share0", "/srv/a,b", false)],
        };
        insta::assert_snapshot!(name, arguments(&lab, &files).join("\n"));
    }

    #[test]
    fn devices_have_fixed_addresses() {
        let devices = ["edu".to_owned(), "edu".to_owned()];
        assert_eq!(addresses(&devices), ["0000:00:10.0", "0000:00:11.0"]);
    }
}
