//! The files of a VM.

use crate::scenario::{SerialKind, Vm};

/// The files of one VM; all paths are UTF-8, because QMP is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The guest's image.
    pub kernel: String,
    /// Its initramfs, if it has one.
    pub initrd: Option<String>,
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
}

impl Files {
    /// The sockets that the VMM of `vm` listens on.
    pub fn sockets(&self, vm: &Vm) -> Vec<&str> {
        let serial = (vm.serial == SerialKind::Unix).then_some(&*self.serial_socket);
        std::iter::once(&*self.qmp).chain(serial).collect()
    }
}
