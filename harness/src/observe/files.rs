//! The files of a VM.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::scenario::{SerialKind, Vm};

/// The files of one VM; all paths are UTF-8, because QMP is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// The guest's image.
    pub kernel: String,
    /// Its initramfs, if it has one.
    pub initrd: Option<String>,
    /// The file with guest RAM, if it is in a file with a name.
    pub ram: String,
    /// The QMP socket.
    pub qmp: String,
    /// The file with the output of the guest's serial port.
    pub serial: String,
    /// The socket of the serial port, if it has one.
    pub serial_socket: String,
    /// The VMM's log.
    pub log: String,
    /// The VMM's PID file.
    pub pid_file: String,
    /// What the names of `qmp`, `serial_socket`, `log` and `pid_file` have before their extension:
    /// empty for the first VMM, `-N` for one that was started for update number N.
    pub suffix: String,
}

impl Files {
    /// The files of a VMM that is started for update `number` while another runs.
    pub fn for_update(&self, number: u32) -> Self {
        let suffix = format!("-{number}");
        let of_new = |path: &String| with_suffix(&self.plain_path(path), &suffix);
        Self {
            qmp: of_new(&self.qmp),
            serial_socket: of_new(&self.serial_socket),
            log: of_new(&self.log),
            pid_file: of_new(&self.pid_file),
            suffix,
            ..self.clone()
        }
    }

    /// These files with other RAM: a copy, made in update `number`.
    pub fn with_copied_ram(mut self, number: u32) -> Self {
        let folder = Path::new(&self.ram).parent().unwrap_or_else(|| Path::new(""));
        self.ram = folder.join(format!("guest-{number}.ram")).to_string_lossy().into_owned();
        self
    }

    /// The sockets that the VMM of `vm` listens on.
    pub fn sockets(&self, vm: &Vm) -> Vec<&str> {
        let serial = (vm.serial == SerialKind::Unix).then_some(&*self.serial_socket);
        std::iter::once(&*self.qmp).chain(serial).collect()
    }

    /// The path or file name as it would be for the first VMM, if `path` is that of one of these
    /// files, or of another that the VMM names after it.
    pub fn plain_path(&self, path: &str) -> String {
        let own = [&self.qmp, &self.serial_socket, &self.log, &self.pid_file];
        let own = own.into_iter().filter(|_| !self.suffix.is_empty());
        let name = |own: &str| own.rsplit('/').next().unwrap_or_default().to_owned();
        let mut names = own.flat_map(|own| [own.clone(), name(own)]);
        let plain = names.find_map(|own| {
            let rest = path.strip_prefix(&own)?;
            Some(format!("{}{rest}", self.without_suffix(&own)))
        });
        plain.unwrap_or_else(|| path.to_owned())
    }

    fn without_suffix(&self, path: &str) -> String {
        let path = Path::new(path);
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        let stem = stem.strip_suffix(&*self.suffix).unwrap_or(&stem);
        path.with_file_name(format!("{stem}.{extension}")).to_string_lossy().into_owned()
    }
}

/// Inserts `suffix` before the extension.
fn with_suffix(path: &str, suffix: &str) -> String {
    match path.rsplit_once('.') {
        Some((stem, extension)) => format!("{stem}{suffix}.{extension}"),
        None => format!("{path}{suffix}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_an_update_have_its_number_and_are_recognized() {
        let file = |name: &str| format!("/a.b/{name}");
        let first = Files {
            kernel: file("guest.elf"),
            initrd: None,
            ram: file("guest.ram"),
            qmp: file("qmp.sock"),
            serial: file("serial.log"),
            serial_socket: file("serial.sock"),
            log: file("vmm.log"),
            pid_file: file("vmm.pid"),
            suffix: String::new(),
        };
        let third = first.for_update(3);
        assert_eq!((&*third.qmp, &*third.pid_file), ("/a.b/qmp-3.sock", "/a.b/vmm-3.pid"));
        assert_eq!((&third.serial, &third.kernel), (&first.serial, &first.kernel));
        assert_eq!(third.for_update(12).log, "/a.b/vmm-12.log");
        assert_eq!(third.ram, first.ram);
        assert_eq!(third.with_copied_ram(3).with_copied_ram(4).ram, "/a.b/guest-4.ram");
        let third = first.for_update(3);
        assert_eq!(third.plain_path("/a.b/qmp-3.sock-2"), "/a.b/qmp.sock-2");
        assert_eq!(third.plain_path("vmm-3.log mode"), "vmm.log mode");
        assert_eq!(third.plain_path("/a.b/state-3"), "/a.b/state-3");
        assert_eq!(first.plain_path("/a.b/qmp.sock"), "/a.b/qmp.sock");
    }
}
