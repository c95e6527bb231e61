//! Behavioural differences between VMMs.

use crate::scenario::Mode;

/// How a VMM behaves where VMMs differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Whether errors contain the number of the errno besides its text.
    pub errno_number: bool,
    /// Whether errors have the wording that scenarios expect; otherwise they only name what failed
    /// and the errno.
    pub own_words: bool,
    /// Whether `blocked-reasons` lists RAM that an update would lose.
    pub private_ram_blocks: bool,
    /// The prefix of the names of vCPU threads, if all threads but the main thread are vCPUs.
    pub vcpu_threads: Option<&'static str>,
    /// Whether guest RAM is excluded from core dumps.
    pub ram_undumped: bool,
    /// Whether the descriptor of RAM in a file with a name has close-on-exec.
    pub ram_file_close_on_exec: bool,
    /// Whether all other descriptors have close-on-exec.
    pub close_on_exec: bool,
    /// Whether it writes a PID file.
    pub pid_file: bool,
    /// Whether a new VMM removes the socket on which it has waited for the VM.
    pub removes_its_channel: bool,
    /// Whether it tells how much RAM it has copied.
    pub counts_copied_ram: bool,
    /// What a new VMM keeps from the old one.
    pub across_exec: AcrossExec,
    /// How an update by exec passes on the VM's state and RAM.
    pub exec_state: ExecState,
}

/// What a new VMM keeps from the old one besides the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcrossExec {
    /// Everything: connections, descriptors, events, the files made at boot.
    Kept,
    /// Only the memory that is handed over; the rest is created again as at boot, and clients
    /// reconnect.
    Recreated,
}

/// How an update by exec passes on the VM's state and RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecState {
    /// The environment variable with the descriptor of the state's memfd.
    pub variable: &'static str,
    /// The prefix of all its variables.
    pub variables: &'static str,
    /// Whether the variables stay in `/proc/PID/environ` because the new VMM does not erase them.
    pub variable_stays: bool,
    /// The target of the state memfd's link in `/proc/PID/fd`.
    pub state: &'static str,
    /// The target of the RAM memfd's link in `/proc/PID/fd`.
    pub ram: &'static str,
}

/// A feature that a case may need and not every VMM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// Fail points.
    FailPoints,
    /// The VMM rehearses commands before the guest stops, if `x-cpr-exec-rehearsal` is set.
    Rehearsal,
    /// The VMM ends an update that hangs (`x-cpr-exec-deadline`).
    Deadline,
    /// The parameter `x-max-downtime`.
    MaxDowntime,
    /// A client of the serial port stays connected across an update.
    SerialClient,
    /// The VMM hands over open files.
    OpenFiles,
    /// The file that the harness starts is the one that is executed, not a script.
    OwnBinary,
    /// The VMM gets huge pages even if the kernel does not give them to all shared memory.
    HugePagesByMount,
    /// The VM moves to another process in this mode.
    Mode(Mode),
    /// A keeper continues the VM when the VMM's process dies (`--keeper`).
    Keeper,
    /// A client that stays connected tells the new VMM to load the state (`--incoming defer`).
    Deferred,
    /// The VMM logs to standard error or to a file.
    Log,
    /// The VMM boots a Linux kernel with an initramfs.
    Linux,
    /// The VMM is QEMU, and takes a machine type and arguments of a scenario (`vm.qemu`).
    QemuOptions,
    /// The VMM can be started with the guest stopped.
    Prelaunch,
    /// The VM can be saved to a file with its RAM (mode `normal`).
    Snapshot,
    /// The command line of a new VMM in another process describes its machine.
    OwnMachine,
    /// An update can be cancelled.
    Cancel,
    /// The VMM uses `execveat` where `execve` is forbidden.
    Execveat,
}
