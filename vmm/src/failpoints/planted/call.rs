//! Planted bugs in single calls: their arguments, or what is told about their failure.

use std::fs::File;
use std::ops::RangeInclusive;
use std::sync::LazyLock;

use nix::errno::Errno;

use super::{Planted, planted};

static DEFAULT_COMMAND: LazyLock<[String; 1]> = LazyLock::new(|| ["/bin/false".to_owned()]);

/// Returns the words that are executed in place of `words`.
pub(in super::super) fn change_command(words: &[String]) -> &[String] {
    match words {
        [] if planted(Planted::EmptyCommand) => &*DEFAULT_COMMAND,
        words => words,
    }
}

/// Returns the command and the error that are reported in place of these.
pub(in super::super) fn change_exec_error(command: &str, errno: Errno) -> (&str, Errno) {
    let errno = if planted(Planted::WrongErrno) { Errno::EINTR } else { errno };
    (if planted(Planted::StaleError) { "" } else { command }, errno)
}

/// Removes the second half of what was written to `file`.
pub(in super::super) fn cut_short(file: &File) {
    if planted(Planted::ShortState) {
        let length = file.metadata().expect("the file is open").len();
        file.set_len(length / 2).expect("it was just written to");
    }
}

/// Returns the versions that are read in place of `readable`.
pub(in super::super) fn change_versions(
    known: RangeInclusive<u32>,
    readable: RangeInclusive<u32>,
) -> RangeInclusive<u32> {
    if planted(Planted::AnyVersion) { known } else { readable }
}

/// Returns the queues that are looked at in place of `queues`, a bit each, and whether interrupts
/// are raised again.
pub(in super::super) fn change_started(queues: u64, again: bool) -> (u64, bool) {
    let queues = if planted(Planted::LoseKick) { 0 } else { queues };
    (queues, again && !planted(Planted::LoseInterrupt))
}

/// Returns the number of bytes that are logged in place of `written`.
pub(in super::super) fn change_logged(written: u64) -> u64 {
    if planted(Planted::UnloggedDma) { 0 } else { written }
}

/// Returns the flags and the offset with which a file is mapped in place of these.
pub(in super::super) fn change_mapping(flags: i32, offset: u64) -> (i32, u64) {
    let flags = match planted(Planted::PrivateMapping) {
        true => flags & !libc::MAP_SHARED | libc::MAP_PRIVATE,
        false => flags,
    };
    (flags, if planted(Planted::WrongOffset) { 0 } else { offset })
}
