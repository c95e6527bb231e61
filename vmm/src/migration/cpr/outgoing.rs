//! What passes to the process that continues: the parts of the VMM, and their descriptors.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;

use cpr_qmp::migration::MigrationParameters;
use cpr_qmp::run_state::RunState;

use super::fd_names::{KVM_FD, SIGNALS_FDS};
use super::named_fds::OutgoingFds;
use crate::logging::LOG_FD;
use crate::machine::Machine;
use crate::migration::status::Migration;
use crate::qmp::Server;
use crate::unix_listener::ListenerState;

/// The parts of the VMM that pass to the process that continues.
pub struct View<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The current or intended run state.
    pub run_state: RunState,
    /// The QMP server.
    pub qmp: &'a Server,
    /// The migration's status.
    pub migration: &'a Migration,
    /// The migration parameters.
    pub parameters: &'a MigrationParameters,
    /// The PID file.
    pub pid_file: Option<PathBuf>,
    /// The log file.
    pub log: Option<&'a File>,
    /// Both ends of the socket pair that reports signals.
    pub signals: [BorrowedFd<'a>; 2],
}

/// What the serial port hands over. Its lock is not held: a thread that crashes while holding it
/// would block the thread that falls back.
pub struct SerialHandOver {
    /// Its descriptors, by name.
    pub fds: Vec<(&'static str, RawFd)>,
    /// The port's listening socket.
    pub listener: Option<ListenerState>,
}

impl SerialHandOver {
    /// Hands over nothing.
    pub fn none() -> Self {
        Self { fds: Vec::new(), listener: None }
    }

    /// Collects what there is now.
    pub fn of(machine: &Machine) -> Self {
        let Some(bus) = machine.bus() else { return Self::none() };
        let serial = bus.serial();
        let fds = serial.preserved_fds().into_iter().map(|(name, fd)| (name, fd.as_raw_fd()));
        Self { fds: fds.collect(), listener: serial.host().listener_state() }
    }
}

/// Returns every descriptor of the VM, by name.
pub fn outgoing_fds<'a>(view: &View<'a>, serial: &SerialHandOver) -> OutgoingFds<'a> {
    let &View { machine, qmp, log, signals, .. } = view;
    let mut fds = OutgoingFds::default();
    for (name, fd) in named_signals(signals) {
        fds.add(name, 0, fd);
    }
    fds.add(KVM_FD, 0, machine.kvm_fd());
    #[cfg(feature = "failpoints")]
    if let Some((name, fd)) = crate::failpoints::seam::handed_over_too(machine.vm_fd()) {
        fds.add(name, 0, fd);
    }
    #[cfg(feature = "failpoints")]
    fds.add(crate::machine::irqfd::NAME, 0, machine.irqfd().fd());
    let ram = machine.ram();
    if let Some(fd) = ram.fd() {
        fds.add(format!("ram.{}", ram.name()), 0, fd);
    }
    if let Some(image) = machine.image() {
        fds.add("boot.kernel", 0, image.kernel_fd());
        if let Some(fd) = image.initrd_fd() {
            fds.add("boot.initrd", 0, fd);
        }
    }
    for &(name, fd) in &serial.fds {
        // SAFETY: the serial port closes its descriptors on this thread only, when it is serviced.
        fds.add(name, 0, unsafe { BorrowedFd::borrow_raw(fd) });
    }
    for (name, fd) in qmp.named_fds() {
        fds.add(name, 0, fd);
    }
    if let Some(log) = log {
        fds.add(LOG_FD, 0, log.as_fd());
    }
    fds
}

/// Pairs the two ends of the socket pair that reports signals with their names.
pub fn named_signals<'a>(
    ends: [BorrowedFd<'a>; 2],
) -> impl Iterator<Item = (&'static str, BorrowedFd<'a>)> {
    SIGNALS_FDS.into_iter().zip(ends)
}
