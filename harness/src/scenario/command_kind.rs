//! The commands of an update, good and bad, and the errno each bad one is named for.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What `cpr-exec-command` is set to; each bad kind is prepared in the case's folder.
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
    /// The VMM by its bare name, to be found through `PATH`.
    InPath,
    /// The same VMM, which waits for `migrate-incoming`: the harness sends that.
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
    /// A bare name that no folder of `PATH` has.
    EnoentInPath,
    /// A file without an execute bit.
    EaccesNotExecutable,
    /// A directory.
    EaccesDirectory,
    /// Executable text without `#!`.
    EnoexecText,
    /// The first bytes of an ELF file.
    EnoexecElf,
    /// A path through a file.
    Enotdir,
    /// A symbolic link to itself.
    Eloop,
    /// A name longer than any file's.
    Enametoolong,
    /// An argument longer than the kernel takes.
    E2big,
    /// A file that is open for writing.
    Etxtbsy,
    /// `true`: ends well, and is no VMM.
    True,
    /// `false`: ends badly.
    False,
    /// `sleep`: does nothing for longer than anybody waits.
    Sleep,
    /// `yes`: writes for ever.
    Yes,
    /// `cat`: reads its input.
    Cat,
    /// A script that exits with status 0.
    ScriptExits,
    /// A script that kills itself.
    ScriptKillsItself,
    /// A script that leaves a child behind in a session of its own.
    ScriptDaemonizes,
    /// An ELF file of another machine.
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
    /// A VMM that reads an older version of the saved state.
    OlderState,
    /// A VMM that reads a newer version of it.
    NewerState,
    /// The VMM with another state file.
    OtherIncoming,
    /// The VMM on a mount from which nothing may be executed.
    NoexecMount,
    /// A whole i386 program, which exits with status 0 where the kernel executes it.
    #[serde(rename = "elf-32")]
    Elf32,
    /// The first half of what is loaded of the VMM's file.
    TruncatedVmm,
    /// A wrapper that passes the rehearsal; then it cuts the state file in half. Those that
    /// follow are of this kind, too.
    TruncatesState,
    /// It flips one bit in the middle of the state file.
    FlipsState,
    /// It empties the state file.
    EmptiesState,
    /// It puts the state of an earlier update in its place.
    ReplacesState,
    /// It puts a FIFO in its place.
    StateBecomesFifo,
    /// It puts a directory in its place.
    StateBecomesDirectory,
    /// It removes the state file.
    RemovesState,
    /// It sets `CPR_EXEC_STATE` to a word.
    EnvNotANumber,
    /// To -1.
    EnvNegative,
    /// To more than any descriptor.
    EnvHuge,
    /// To a number that is not open.
    EnvClosed,
    /// To the number of an ordinary file.
    EnvNotMemfd,
    /// To the empty word.
    EnvEmpty,
    /// It unsets it.
    EnvRemoved,
    /// It sets it to the number of RAM's memfd.
    EnvOtherFd,
    /// It has no usable `/dev/kvm`.
    WithoutKvm,
    /// A wrapper that forks, and waits for the VMM: a script without `exec`. Those that follow are of
    /// this kind, too.
    ForksScript,
    /// `sh -c '"$@"; exit $?'`.
    ForksShC,
    /// `timeout 600`.
    ForksTimeout,
    /// `flock`.
    ForksFlock,
    /// `xargs`.
    ForksXargs,
    /// `unshare -p -f`: in a PID namespace of its own.
    ForksUnshare,
    /// `strace -f`.
    ForksStrace,
    /// `setsid -f`, which does not wait.
    ForksSetsid,
    /// `script -c`: on a terminal of its own.
    ForksTypescript,
    /// `nohup … &` and `wait`.
    ForksBackground,
    /// A Python program that waits.
    ForksPython,
    /// A wrapper that execs the VMM with less than the one before had: 16 descriptors. Those that
    /// follow are of this kind, too.
    LowersNofile,
    /// 512 MiB of address space.
    LowersAs,
    /// 64 KiB of stack.
    LowersStack,
    /// No queued signal, and so no timer.
    LowersSigpending,
    /// No `ioctl`: EPERM.
    FiltersIoctl,
    /// No `clone3`, by which threads are started.
    FiltersClone3,
    /// No `eventfd2`.
    FiltersEventfd2,
    /// No `timer_create`.
    FiltersTimerCreate,
    /// Only the descriptors that the environment names stay open.
    ClosesDescriptors,
    /// The VMM is that of another user, who may not signal the processes of the one before.
    ChangesUser,
}

/// The errno a bad command is named for.
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
    /// Its number.
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

    /// What has it is a file that is written, and not a command.
    pub fn is_of_writing(self) -> bool {
        matches!(self, Self::Efbig | Self::Enospc)
    }

    /// What libc says of it.
    pub fn words(self) -> String {
        let text = self.text();
        text.split(" (os error").next().unwrap_or_default().to_owned()
    }

    /// What libc says of it, followed by ` (os error N)`.
    pub fn text(self) -> String {
        std::io::Error::from_raw_os_error(self.number()).to_string()
    }
}

impl CommandKind {
    /// The VMM is another process than the one that is executed.
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

    /// The VMM has less than the one before.
    pub fn lowers(self) -> bool {
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

    /// The errno with which executing it fails.
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
