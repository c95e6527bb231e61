//! Tracks which parts of the VMM's interface the scenarios of a full run drive: options and kinds
//! of their values, commands, arguments, members of events and replies, enum values, classes of
//! errors, fail points, and the ways in which an update ends in each run state.
//!
//! The list of parts comes from the VMM itself (its schema and its options), so a new part that no
//! scenario drives fails the next full run. `scenarios/not-driven.toml` lists what other tests
//! cover.

pub mod endings;
mod interface;
mod not_driven;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use cpr_qmp::message::{ErrorClass, Event};
use cpr_qmp::schema::{COMMANDS, EVENTS};
use serde_json::Value;

pub use not_driven::NotDriven;

/// What was driven by this process, under the names of [`interface`].
static DRIVEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn note(items: impl IntoIterator<Item = String>) {
    DRIVEN.lock().unwrap_or_else(PoisonError::into_inner).extend(items);
}

/// Records the command line of a VMM.
pub fn executed(words: &[String]) {
    note(interface::options_in(words));
}

/// Records a command that was sent.
pub fn sent(name: &str, arguments: &Value) {
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else { return };
    let mut items = vec![interface::command(name)];
    let prefix = interface::argument(name);
    interface::parts_in_object(&prefix, command.arguments, arguments, &mut items);
    note(items);
}

/// Records the reply to command `name`.
pub fn answered(name: &str, answer: &Value) {
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else { return };
    let mut items = Vec::new();
    interface::parts_in(&interface::answer(name), &command.returns, answer, &mut items);
    note(items);
}

/// Records an error reply.
pub fn failed(class: ErrorClass) {
    note([interface::error(class)]);
}

/// Records an event.
pub fn heard(event: &Event) {
    if event.event == interface::OWN_EVENT.0 {
        let name = interface::event(&event.event);
        let data = event.data.as_ref().and_then(Value::as_object);
        let members = data.into_iter().flat_map(|data| data.keys());
        note(members.map(|member| format!("{name}.{member}")).chain([name.clone()]));
    }
    let Some(known) = EVENTS.iter().find(|known| known.name == event.event) else { return };
    let mut items = vec![interface::event(known.name)];
    if let Some(data) = &event.data {
        interface::parts_in_object(&interface::event(known.name), known.data, data, &mut items);
    }
    note(items);
}

/// Records how an update ended.
pub fn ended(ended: endings::Ended) {
    note(endings::items(ended));
}

/// Records a fail point that was armed.
pub fn armed(point: &str) {
    note([interface::fail_point(point)]);
}

/// Returns what is missing or stale if this process has run all scenarios, one line each.
pub fn complaints() -> Vec<String> {
    let driven = DRIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    NotDriven::embedded().complaints(&interface::all(), &driven)
}
