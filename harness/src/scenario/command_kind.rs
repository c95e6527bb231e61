//! The commands of an update, good and bad, and the errno that each bad one must fail with.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What `cpr-exec-command` is set to. The files of each bad kind are prepared in the case's folder.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum CommandKind {
    /// The same VMM, by its path.
    #[default]
    Good,
    /// A `#!/bin/sh` script that execs the VMM.
    Wrapper,
    /// The VMM by its bare name, found through `PATH`.
    InPath,
    /// The same VMM, waiting for `migrate-incoming`, which the harness sends.
    Deferred,
    /// The parameter is not set.
    Missing,
    /// `[]`.
    EmptyList,
    /// `["", …]`.
    EmptyWord,
    /// A NUL in an argument.
    Nul,
    /// No such file.
    Enoent,
    /// A bare name that is in no folder of `PATH`.
    EnoentInPath,
    /// A file without an execute bit.
    EaccesNotExecutable,
    /// A directory.
    EaccesDirectory,
    /// Executable text without `#!`.
    EnoexecText,
    /// The first bytes of an ELF file.
    EnoexecElf,
    /// A path with a regular file as a directory component.
    Enotdir,
    /// A symbolic link to itself.
    Eloop,
    /// A name longer than the file system allows.
    Enametoolong,
    /// An argument longer than the kernel accepts.
    E2big,
    /// A file that is open for writing.
    Etxtbsy,
    /// `true`: exits with status 0, but is not a VMM.
    True,
    /// `false`: exits with status 1.
    False,
    /// `sleep`: sleeps past every deadline.
    Sleep,
    /// `yes`: writes forever.
    Yes,
    /// `cat`: reads its input.
    Cat,
    /// A script that exits with status 0.
    ScriptExits,
    /// A script that kills itself.
    ScriptKillsItself,
    /// A script that leaves a child behind in its own session.
    ScriptDaemonizes,
    /// An ELF file for another architecture.
    ForeignElf,
    /// The VMM with 32 MiB of RAM.
    OtherMemory,
    /// The VMM with seven vCPUs.
    OtherCpus,
    /// The VMM without its serial port's file.
    OtherSerial,
    /// The VMM without QMP.
    NoQmp,
    /// The VMM with an option it does not have.
    UnknownOption,
    /// The VMM without `--incoming`.
    NoIncoming,
    /// A VMM that expects an older version of the saved state.
    OlderState,
    /// A VMM that expects a newer version of the saved state.
    NewerState,
    /// The VMM with another state file.
    OtherIncoming,
    /// The VMM on a `noexec` mount.
    NoexecMount,
    /// A complete i386 program, which exits with status 0 if the kernel can execute it.
    #[serde(rename = "elf-32")]
    Elf32,
    /// The VMM's file, cut off halfway through its loadable segments.
    TruncatedVmm,
    /// A wrapper that passes the rehearsal, then cuts the state file in half. The commands up to
    /// `without-kvm` are wrappers of this kind, too.
    TruncatesState,
    /// The wrapper flips one bit in the middle of the state file.
    FlipsState,
    /// The wrapper empties the state file.
    EmptiesState,
    /// The wrapper replaces the state file with that of an earlier update.
    ReplacesState,
    /// The wrapper replaces the state file with a FIFO.
    StateBecomesFifo,
    /// The wrapper replaces the state file with a directory.
    StateBecomesDirectory,
    /// The wrapper removes the state file.
    RemovesState,
    /// The wrapper sets `CPR_EXEC_STATE` to a word.
    EnvNotANumber,
    /// The wrapper sets `CPR_EXEC_STATE` to -1.
    EnvNegative,
    /// The wrapper sets `CPR_EXEC_STATE` to a number larger than any descriptor.
    EnvHuge,
    /// The wrapper sets `CPR_EXEC_STATE` to a descriptor that is not open.
    EnvClosed,
    /// The wrapper sets `CPR_EXEC_STATE` to the descriptor of a regular file.
    EnvNotMemfd,
    /// The wrapper sets `CPR_EXEC_STATE` to the empty string.
    EnvEmpty,
    /// The wrapper unsets `CPR_EXEC_STATE`.
    EnvRemoved,
    /// The wrapper sets `CPR_EXEC_STATE` to the descriptor of RAM's memfd.
    EnvOtherFd,
    /// The wrapper leaves the VMM without a usable `/dev/kvm`.
    WithoutKvm,
    /// A wrapper that forks and waits for the VMM: a script without `exec`. The other `forks-*`
    /// commands are wrappers of this kind, too.
    ForksScript,
    /// `sh -c '"$@"; exit $?'`.
    ForksShC,
    /// `timeout 600`.
    ForksTimeout,
    /// `flock`.
    ForksFlock,
    /// `xargs`.
    ForksXargs,
    /// `unshare -p -f`: a new PID namespace.
    ForksUnshare,
    /// `strace -f`.
    ForksStrace,
    /// `setsid -f`, which does not wait.
    ForksSetsid,
    /// `script -c`: a new terminal.
    ForksTypescript,
    /// `nohup … &` and `wait`.
    ForksBackground,
    /// A Python program that starts the VMM and waits for it.
    ForksPython,
    /// A wrapper that execs the VMM with fewer resources or rights than its predecessor had: 16
    /// descriptors. All commands that follow are wrappers of this kind, too.
    LowersNofile,
    /// 512 MiB of address space.
    LowersAs,
    /// 64 KiB of stack.
    LowersStack,
    /// No queued signals, and thus no timers.
    LowersSigpending,
    /// `ioctl` fails with EPERM.
    FiltersIoctl,
    /// `clone3`, which starts threads, fails with EPERM.
    FiltersClone3,
    /// `eventfd2` fails with EPERM.
    FiltersEventfd2,
    /// `timer_create` fails with EPERM.
    FiltersTimerCreate,
    /// Only the descriptors that the environment names stay open.
    ClosesDescriptors,
    /// The VMM runs as another user, who may not signal the predecessor's processes.
    ChangesUser,
}

/// The errno that a bad command or channel fails with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names are the kernel's")]
pub enum Errno {
    Eperm,
    Enoent,
    Eacces,
    Enoexec,
    Enotdir,
    Eloop,
    Enametoolong,
    E2big,
    Etxtbsy,
    Efbig,
    Enospc,
    Erofs,
    Eisdir,
}

impl Errno {
    /// The errno's number.
    pub fn number(self) -> i32 {
        match self {
            Self::Eperm => libc::EPERM,
            Self::Enoent => libc::ENOENT,
            Self::Eacces => libc::EACCES,
            Self::Enoexec => libc::ENOEXEC,
            Self::Enotdir => libc::ENOTDIR,
            Self::Eloop => libc::ELOOP,
            Self::Enametoolong => libc::ENAMETOOLONG,
            Self::E2big => libc::E2BIG,
            Self::Etxtbsy => libc::ETXTBSY,
            Self::Efbig => libc::EFBIG,
            Self::Enospc => libc::ENOSPC,
            Self::Erofs => libc::EROFS,
            Self::Eisdir => libc::EISDIR,
        }
    }

    /// Whether this errno comes from writing a file rather than from executing a command.
    pub fn is_of_writing(self) -> bool {
        matches!(self, Self::Efbig | Self::Enospc)
    }

    /// The error message of libc.
    pub fn words(self) -> String {
        let text = self.text();
        text.split(" (os error").next().unwrap_or_default().to_owned()
    }

    /// The error message of libc, followed by ` (os error N)`.
    pub fn text(self) -> String {
        std::io::Error::from_raw_os_error(self.number()).to_string()
    }
}

impl CommandKind {
    /// Whether the VMM runs in a child of the process that is executed.
    pub fn forks(self) -> bool {
        use CommandKind::*;
        matches!(
            self,
            ForksScript
                | ForksShC
                | ForksTimeout
                | ForksFlock
                | ForksXargs
                | ForksUnshare
                | ForksStrace
                | ForksSetsid
                | ForksTypescript
                | ForksBackground
                | ForksPython
        )
    }

    /// Whether the new VMM has fewer resources or rights than its predecessor.
    pub fn restricts_process(self) -> bool {
        use CommandKind::*;
        matches!(
            self,
            LowersNofile
                | LowersAs
                | LowersStack
                | LowersSigpending
                | FiltersIoctl
                | FiltersClone3
                | FiltersEventfd2
                | FiltersTimerCreate
                | ClosesDescriptors
                | ChangesUser
        )
    }

    /// The errno that executing this command fails with.
    pub fn errno(self) -> Option<Errno> {
        match self {
            Self::Enoent | Self::EnoentInPath => Some(Errno::Enoent),
            Self::EaccesNotExecutable | Self::EaccesDirectory | Self::NoexecMount => {
                Some(Errno::Eacces)
            }
            Self::EnoexecText | Self::EnoexecElf => Some(Errno::Enoexec),
            Self::Enotdir => Some(Errno::Enotdir),
            Self::Eloop => Some(Errno::Eloop),
            Self::Enametoolong => Some(Errno::Enametoolong),
            Self::E2big => Some(Errno::E2big),
            Self::Etxtbsy => Some(Errno::Etxtbsy),
            _ => None,
        }
    }
}
