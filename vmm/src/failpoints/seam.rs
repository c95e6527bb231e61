//! The seams: the places where something that crosses an update passes. At each of them a planted
//! bug or a random loss can change it.
//!
//! Production code has one line for each, `seam!(…)` where a value passes.

use std::borrow::Cow;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::{BorrowedFd, OwnedFd};

use cpr_qmp::message::Event;
use nix::errno::Errno;
use serde_json::Value;

use super::planted::{call, handover, message, process, saved_state};
use super::{loss, pretended_version};

/// The sections of a saved state that was decoded, each as `name.instance`.
pub fn saved_state<'a>(sections: impl Iterator<Item = (String, &'a mut Vec<u8>)>) {
    let mut sections: Vec<_> = sections.collect();
    saved_state::change(&mut sections);
    loss::lose_of_saved_state(sections);
}

/// The encoded CPR state that the new process decodes.
pub fn cpr_state(body: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    loss::lose_of_cpr_state(handover::change_state(body))
}

/// What an update hands over besides what it needs; `vm` is the VM's descriptor.
pub fn handed_over_too<'a>(vm: Option<BorrowedFd<'a>>) -> Option<(&'static str, BorrowedFd<'a>)> {
    handover::hand_over_too(vm)
}

/// The descriptors that the new process owns, by name and ID.
pub fn adopted(fds: Vec<(String, u32, OwnedFd)>) -> Vec<(String, u32, OwnedFd)> {
    handover::change_descriptors(fds)
}

/// An event for all clients.
pub fn events(event: &[Event]) -> Vec<Event> {
    event.iter().cloned().flat_map(message::change_event).filter_map(loss::lose_of_event).collect()
}

/// The successful answer to a command.
pub fn answer(answer: Value) -> Value {
    loss::lose_of_answer(message::change_answer(answer))
}

/// The new process, when its guest runs. `variable` and `state` are where it found the CPR state.
pub fn taken_over(variable: &str, state: BorrowedFd<'_>) {
    process::change_taken_over(variable, state);
    loss::lose_attribute();
}

/// The old process, when its update has failed and the guest is again as it was.
pub fn update_failed() {
    process::change_failed();
}

/// The words of the command to execute.
pub fn command(words: &[String]) -> &[String] {
    call::change_command(words)
}

/// The command that could not be executed, and the error.
pub fn exec_error(command: &str, errno: Errno) -> (&str, Errno) {
    call::change_exec_error(command, errno)
}

/// The channel's file, when the saved state has been written to it.
pub fn channel_written(file: &File) {
    call::cut_short(file);
}

/// The versions of the saved state that this binary knows, if they are `known`.
pub fn known_versions(known: RangeInclusive<u32>) -> RangeInclusive<u32> {
    let pretended = pretended_version().map(|version| version..=version);
    call::change_versions(known.clone(), pretended.unwrap_or(known))
}

/// The flags and the offset with which RAM is mapped.
pub fn mapping(flags: i32, offset: u64) -> (i32, u64) {
    call::change_mapping(flags, offset)
}

/// The number of bytes that a device has written to RAM, for the log of pages to copy.
pub fn written_by_device(bytes: u64) -> u64 {
    call::change_logged(bytes)
}

/// The queues that a device looks at when it starts, a bit each, and whether it raises their
/// interrupts again.
pub fn device_started(queues: u64, again: bool) -> (u64, bool) {
    call::change_started(queues, again)
}
