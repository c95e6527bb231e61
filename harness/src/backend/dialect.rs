//! In what VMMs that do the same may differ.

/// What a VMM promises, where promises differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialect {
    /// Errors give the number of the errno besides its text.
    pub errno_number: bool,
    /// Errors are worded as scenarios have it; otherwise they name what failed and the errno.
    pub own_words: bool,
    /// RAM that an update would lose is told in `blocked-reasons`.
    pub private_ram_blocks: bool,
    /// What the names of vCPU threads begin with, where it has no others but the main thread.
    pub vcpu_threads: Option<&'static str>,
    /// Guest RAM is left out of core dumps.
    pub ram_undumped: bool,
    /// What a new VMM has of the old one's.
    pub over_exec: OverExec,
    /// How an update hands over what it does.
    pub handover: Handover,
}

/// What a new VMM has of the old one's, besides the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverExec {
    /// Everything: connections, descriptors, events, the files made at boot.
    Kept,
    /// Only the memory that it is handed; the rest is made anew as at boot, and clients connect again.
    Remade,
}

/// How an update hands over what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The environment variable with the number of the state's memfd.
    pub variable: &'static str,
    /// What all its variables begin with.
    pub variables: &'static str,
    /// They stay in `/proc/PID/environ`, where the new VMM does not overwrite them.
    pub variable_stays: bool,
    /// Target of the state's memfd.
    pub state: &'static str,
    /// Target of RAM's.
    pub ram: &'static str,
}

/// What a case may need of a VMM, and not every VMM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// Fail points.
    FailPoints,
    /// Commands are rehearsed before the guest stops, if `x-cpr-exec-rehearsal` says so.
    Rehearsal,
    /// It ends an update that hangs (`x-cpr-exec-deadline`).
    Deadline,
    /// A client of the serial port stays connected over an update.
    SerialClient,
    /// It hands over files that it has open.
    OpenFiles,
    /// The file that is started is the one that is executed.
    OwnBinary,
    /// It gets huge pages where the kernel does not give them to every shared memory.
    HugePagesByMount,
    /// A keeper continues the VM when the VMM's process dies (`--keeper`).
    Keeper,
    /// A client that stays connected tells it to load the state (`--incoming defer`).
    Deferred,
    /// It logs, to standard error or to a file.
    Log,
    /// `execveat` serves it where `execve` is forbidden.
    Execveat,
}
