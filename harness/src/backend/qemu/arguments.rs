//! QEMU's command line, as far as the harness decides it.

use super::setup::Setup;
use crate::backend::Launch;
use crate::scenario::{Device, Pages, SerialKind};

/// The machine that boots unless another is chosen.
const MACHINE: &str = "pc";

/// The arguments that boot a VM, without those that the scenario and `setup` add.
pub(super) fn arguments(launch: Launch<'_>, setup: &Setup, second_qmp: &str) -> Vec<String> {
    let Launch { vm, name, files, .. } = launch;
    let machine = setup.machine.as_ref().or(vm.qemu.machine.as_ref());
    let machine = machine.map_or(MACHINE, String::as_str);
    let share = if vm.share { "on" } else { "off" };
    let pages = match vm.pages {
        Pages::Small | Pages::Transparent => "",
        Pages::Reserved => ",hugetlb=on,hugetlbsize=2M",
    };
    let serial = match vm.serial {
        // Appends, because an updated QEMU must not truncate the file.
        SerialKind::File => format!("file,id=serial,path={},append=on", escaped(&files.serial)),
        SerialKind::Unix => {
            format!("socket,id=serial,path={},server=on,wait=off", escaped(&files.serial_socket))
        }
    };
    let qmp = |path: &str| format!("unix:{},server=on,wait=off", escaped(path));
    let memory = match vm.memory_file {
        true => format!("memory-backend-file,id=ram,mem-path={}", escaped(&files.ram)),
        false => "memory-backend-memfd,id=ram".to_owned(),
    };
    let options = [
        ("-name", format!("guest={}", escaped(name))),
        ("-machine", format!("{machine},memory-backend=ram,aux-ram-share=on")),
        ("-object", format!("{memory},size={},share={share}{pages}", vm.memory)),
        ("-m", vm.memory.to_string()),
        ("-accel", setup.accelerator.to_string()),
        ("-cpu", setup.accelerator.cpu().into()),
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
    let devices = vm.devices.iter().map(|device| ("-device", device_argument(*device)));
    // Or RAM would be copied into the state as well.
    let kept = vm.memory_file.then(|| ("-global", "migration.x-ignore-shared=on".to_owned()));
    let valued = options
        .into_iter()
        .chain(kept)
        .chain(devices)
        .flat_map(|(option, value)| [option.to_owned(), value]);
    plain.into_iter().chain(valued).collect()
}

/// The argument that adds a device as our VMM has it: without the interface before VIRTIO 1.0.
fn device_argument(device: Device) -> String {
    // QEMU's limit has another meaning: it splits requests.
    let model = match device {
        Device::VirtioRng | Device::SlowVirtioRng => "virtio-rng-pci",
    };
    format!("{model},disable-legacy=on")
}

/// Escapes a value for QEMU's comma-separated options.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}
