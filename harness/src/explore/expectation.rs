//! Predicts how an update must end: the model's value for `expect`.

use crate::model::reference::{Model, State};
use crate::scenario::{
    Channel, CommandKind, Errno, Expect, Failure, Limit, Migrate, Seccomp, expansion,
};

/// Significant parts of our VMM's error texts.
const NOT_EXECUTED: &str = "cannot execute cpr-exec-command";
const NO_ANSWER: &str = "before replying to the rehearsal";

/// Returns how `migrate` must end in `state`; `None` if it would legitimately lose the VM or takes
/// too long.
pub fn expect(model: &Model, state: &State, migrate: &Migrate) -> Option<Expect> {
    let Migrate { command, channel, rehearsal, .. } = *migrate;
    let plain = command == CommandKind::Good && channel == Channel::File;
    if let Some(inject) = &state.armed {
        return plain.then(|| expansion::expected(&inject.point, &inject.action)).flatten();
    }
    // If it is unknown whether commands are rehearsed, only one that is good either way is allowed.
    let rehearsed = match rehearsal.or(state.rehearses) {
        Some(rehearsed) => rehearsed,
        None => return plain.then_some(Expect::Completed).filter(|_| can_be_updated(model, state)),
    };
    let of_command = of_command(state, command, rehearsed)?;
    if let Some(limit) = state.limit {
        let of_limit = match limit {
            Limit::Fsize(_) => failed(Some(Errno::Efbig), ""),
            _ => Expect::Any,
        };
        return plain.then_some(of_limit);
    }
    if !model.vm().share {
        return Some(match plain {
            true => Expect::Refused("pc.ram".to_owned()),
            false => undone(),
        });
    }
    if model.vm().seccomp == Some(Seccomp::NoExecve) {
        return match (plain, rehearsed) {
            (true, true) => Some(Expect::Refused(Errno::Eperm.words())),
            (true, false) => Some(failed(Some(Errno::Eperm), "")),
            _ => None,
        };
    }
    match (of_command, of_channel(channel)) {
        (of_command, None) => Some(of_command),
        (Expect::Completed, Some(of_channel)) => Some(of_channel),
        // Which of the two errors is reported is unspecified.
        _ => Some(undone()),
    }
}

/// Whether a good update succeeds in `state`.
pub fn can_be_updated(model: &Model, state: &State) -> bool {
    state.limit.is_none() && model.vm().share && model.vm().seccomp.is_none()
}

/// How an update with this command and a good channel ends.
fn of_command(state: &State, command: CommandKind, rehearsed: bool) -> Option<Expect> {
    use CommandKind::*;
    let refused = |text: &str| Expect::Refused(text.to_owned());
    // Detected only by the rehearsal: without one the command replaces the VMM.
    let only_rehearsed = |text: &str| rehearsed.then(|| refused(text));
    match command {
        Good | Wrapper | InPath | Deferred => Some(Expect::Completed),
        Missing if state.command_left => None,
        Missing => Some(refused("cpr-exec mode requires setting cpr-exec-command")),
        EmptyList => Some(refused("cpr-exec-command is an empty list")),
        EmptyWord => Some(refused("empty")),
        Nul => Some(refused("NUL")),
        Enoent | EnoentInPath | EaccesNotExecutable | EaccesDirectory | EnoexecText
        | EnoexecElf | Enotdir | Eloop | Enametoolong | E2big | Etxtbsy | NoexecMount => {
            Some(if rehearsed { refused(NOT_EXECUTED) } else { failed(None, "") })
        }
        ForeignElf if rehearsed => Some(refused(NOT_EXECUTED)),
        ForeignElf => Some(failed(Some(Errno::Enoexec), "")),
        True | False | Cat | ScriptExits | ScriptKillsItself | ScriptDaemonizes | UnknownOption => {
            only_rehearsed(NO_ANSWER)
        }
        Elf32 | TruncatedVmm => only_rehearsed("cpr-exec-command"),
        Sleep | Yes if state.patient => None,
        Sleep | Yes => only_rehearsed("did not answer the rehearsal within 2000 ms"),
        OtherMemory => only_rehearsed("describes 32 MiB of RAM in block pc.ram"),
        OtherCpus => only_rehearsed("describes 7 vCPUs"),
        OtherSerial => only_rehearsed("describes serial as null"),
        NoQmp => only_rehearsed("describes qmp as none, this VM has unix:"),
        NoIncoming => only_rehearsed("it would boot a new guest"),
        OtherIncoming => only_rehearsed("loads file:/no/such/state, this update writes file:"),
        OlderState => Some(other_version(rehearsed, "0")),
        NewerState => Some(other_version(rehearsed, "99")),
        ReplacesState if !state.saved => None,
        ReplacesState => Some(failed(None, "holds a state that this update did not write")),
        // A command that was not rehearsed gets the oldest format.
        TruncatesState if rehearsed => Some(failed(None, "it is truncated at section")),
        TruncatesState => Some(failed(None, "bytes after its header, which says")),
        FlipsState => Some(failed(None, "its checksum does not match")),
        EmptiesState => Some(failed(None, "0 bytes are too short for a header")),
        StateBecomesFifo | StateBecomesDirectory => Some(failed(None, "it is not a regular file")),
        RemovesState => Some(failed(Some(Errno::Enoent), "")),
        EnvNotANumber => Some(failed(None, "\"seven\" is not a descriptor number")),
        EnvNegative => Some(failed(None, "\"-1\" is not a descriptor number")),
        EnvHuge => Some(failed(None, "is not a descriptor number")),
        EnvClosed => Some(failed(None, "is not open")),
        EnvNotMemfd | EnvOtherFd => Some(failed(None, "is not a sealed memfd")),
        EnvEmpty => Some(failed(None, "\"\" is not a descriptor number")),
        EnvRemoved => Some(failed(None, "was removed on the way to the new VMM")),
        WithoutKvm => Some(Expect::Any),
        // Whether 512 MiB are enough depends on the guest.
        LowersAs => None,
        LowersStack | ChangesUser => only_rehearsed("cpr-exec-command"),
        _ if command.forks() => only_rehearsed("must replace itself (exec)"),
        _ => only_rehearsed("cannot take over this guest"),
    }
}

fn other_version(rehearsed: bool, version: &str) -> Expect {
    match rehearsed {
        true => Expect::Refused(format!("reads saved state version {version},")),
        false => failed(None, &format!("this binary reads version {version}")),
    }
}

/// How an update with this channel and a good command ends; `None` if the channel is good, too.
fn of_channel(channel: Channel) -> Option<Expect> {
    let refused = |text: &str| Some(Expect::Refused(text.to_owned()));
    match channel {
        Channel::File => None,
        Channel::Tcp | Channel::Exec | Channel::Unix | Channel::Fd => refused("file"),
        Channel::MissingDirectory => refused("No such file or directory"),
        Channel::Directory => refused("Is a directory"),
        Channel::ReadOnly => refused("Read-only file system"),
        Channel::OnlyCpr => refused("Channel list has no main entry"),
        Channel::Full => Some(failed(Some(Errno::Enospc), "")),
    }
}

fn failed(errno: Option<Errno>, text: &str) -> Expect {
    Expect::Failed(Failure { errno, text: text.to_owned() })
}

fn undone() -> Expect {
    Expect::NotCompleted(String::new())
}
