//! Names the parts of the VMM's interface, and finds those used by a message or a command line.

use std::collections::BTreeSet;

use clap::{Arg, CommandFactory};
use cpr_qmp::event::Continued;
use cpr_qmp::message::ErrorClass;
use cpr_qmp::schema::{COMMANDS, EVENTS, Object, Type};
use cpr_vmm::config::Config;
use cpr_vmm::failpoints::Point;
use serde_json::Value;

use super::endings;

pub(super) fn command(name: &str) -> String {
    format!("command {name}")
}

pub(super) fn argument(name: &str) -> String {
    format!("argument {name}")
}

pub(super) fn answer(name: &str) -> String {
    format!("answer {name}")
}

pub(super) fn event(name: &str) -> String {
    format!("event {name}")
}

pub(super) fn fail_point(name: &str) -> String {
    format!("fail-point {name}")
}

pub(super) fn error(class: ErrorClass) -> String {
    format!("error {class:?}")
}

/// Our own event, which is not in QEMU's schema, and its members.
pub(super) const OWN_EVENT: (&str, [&str; 3]) = (Continued::NAME, ["pid", "former-pid", "reason"]);

/// Every class that an error can have.
const ERRORS: [ErrorClass; 5] = [
    ErrorClass::GenericError,
    ErrorClass::CommandNotFound,
    ErrorClass::DeviceNotActive,
    ErrorClass::DeviceNotFound,
    ErrorClass::KVMMissingCap,
];

/// Returns the names of all parts.
pub(super) fn all() -> BTreeSet<String> {
    let mut items: Vec<String> = Vec::new();
    for spec in COMMANDS {
        items.push(command(spec.name));
        parts_of_object(&argument(spec.name), spec.arguments, &mut items);
        // The schema does not need to cover itself.
        if spec.name != "query-qmp-schema" {
            parts_of(&answer(spec.name), &spec.returns, &mut items);
        }
    }
    for spec in EVENTS {
        items.push(event(spec.name));
        parts_of_object(&event(spec.name), spec.data, &mut items);
    }
    items.push(event(OWN_EVENT.0));
    items.extend(OWN_EVENT.1.map(|member| format!("{}.{member}", event(OWN_EVENT.0))));
    items.extend(ERRORS.map(error));
    items.extend(Point::ALL.iter().map(|point| fail_point(point.name())));
    items.extend(endings::all());
    for option in Config::command().get_arguments().filter(|option| !option.is_hide_set()) {
        let Some(name) = name(option) else { continue };
        items.extend(kinds(option).iter().map(|kind| format!("option {name} {kind}")));
        items.push(format!("option {name}"));
    }
    items.into_iter().collect()
}

/// Both values of an argument are parts; what an answer says is not up to the clients.
fn is_set_by_clients(prefix: &str) -> bool {
    prefix.starts_with(&argument(""))
}

fn parts_of(prefix: &str, of: &Type, items: &mut Vec<String>) {
    match of {
        Type::Array(of) => parts_of(prefix, of, items),
        Type::Enum(of) => items.extend(of.values.iter().map(|value| format!("{prefix}={value}"))),
        Type::Bool if is_set_by_clients(prefix) => {
            items.extend([true, false].map(|value| format!("{prefix}={value}")));
        }
        Type::Object(object) => parts_of_object(prefix, object, items),
        _ => {}
    }
}

fn parts_of_object(prefix: &str, object: &Object, items: &mut Vec<String>) {
    for member in object.members {
        let name = format!("{prefix}.{}", member.name);
        parts_of(&name, &member.of, items);
        items.push(name);
    }
    for (_, case) in object.variants.iter().flat_map(|variants| variants.cases) {
        parts_of_object(prefix, case, items);
    }
}

pub(super) fn parts_in(prefix: &str, of: &Type, value: &Value, items: &mut Vec<String>) {
    match (of, value) {
        (Type::Array(of), Value::Array(values)) => {
            values.iter().for_each(|value| parts_in(prefix, of, value, items));
        }
        (Type::Enum(_), Value::String(value)) => items.push(format!("{prefix}={value}")),
        (Type::Bool, Value::Bool(value)) if is_set_by_clients(prefix) => {
            items.push(format!("{prefix}={value}"));
        }
        (Type::Object(object), value) => parts_in_object(prefix, object, value, items),
        _ => {}
    }
}

pub(super) fn parts_in_object(
    prefix: &str,
    object: &Object,
    value: &Value,
    items: &mut Vec<String>,
) {
    for member in object.members {
        if let Some(value) = value.get(member.name) {
            let name = format!("{prefix}.{}", member.name);
            parts_in(&name, &member.of, value, items);
            items.push(name);
        }
    }
    if let Some(variants) = &object.variants {
        let tag = value.get(variants.tag).and_then(Value::as_str);
        let case = variants.cases.iter().find(|(name, _)| Some(*name) == tag);
        case.into_iter().for_each(|(_, case)| parts_in_object(prefix, case, value, items));
    }
}

fn name(option: &Arg) -> Option<String> {
    match (option.get_long(), option.get_short()) {
        (Some(long), _) => Some(format!("--{long}")),
        (None, Some(short)) => Some(format!("-{short}")),
        (None, None) => None,
    }
}

/// Returns the kinds of values of an option, if it has several: `on|off`, or `file:PATH|defer`,
/// where the prefix up to the colon is the kind.
fn kinds(option: &Arg) -> Vec<String> {
    let values = option.get_possible_values();
    if option.get_action().takes_values() && !values.is_empty() {
        return values.iter().map(|value| value.get_name().to_owned()).collect();
    }
    let shape = option.get_value_names().and_then(|names| Some(names.first()?.as_str()));
    let alternatives = shape.filter(|shape| shape.contains('|') && !shape.contains('['));
    let kind = |text: &str| match text.split_once(':') {
        Some((kind, _)) => format!("{kind}:"),
        None => text.to_owned(),
    };
    alternatives.into_iter().flat_map(|shape| shape.split('|')).map(kind).collect()
}

/// Returns the options on a command line, with the kinds of their values.
pub(super) fn options_in(words: &[String]) -> Vec<String> {
    let mut items = Vec::new();
    for option in Config::command().get_arguments() {
        let Some(name) = name(option) else { continue };
        for (at, word) in words.iter().enumerate() {
            let value = match word.strip_prefix(&name) {
                Some("") => words.get(at + 1),
                Some(rest) if rest.starts_with('=') => Some(word),
                _ => continue,
            };
            items.push(format!("option {name}"));
            let value = value.map(|value| value.trim_start_matches(&format!("{name}=")));
            let fits = |kind: &String| {
                value.is_some_and(|value| match kind.ends_with(':') {
                    true => value.starts_with(kind),
                    false => value == kind,
                })
            };
            let kinds = kinds(option).into_iter().filter(fits);
            items.extend(kinds.map(|kind| format!("option {name} {kind}")));
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_as_a_list() {
        let all: Vec<_> = all().into_iter().collect();
        insta::assert_snapshot!(all.join("\n"));
    }

    #[test]
    fn parts_of_a_command_line_are_in_the_list() {
        let words = ["vmm", "--serial", "file:/a", "--keeper=on", "--incoming", "defer", "--cpus"];
        let mut found = options_in(&words.map(str::to_owned));
        found.sort();
        insta::assert_snapshot!(found.join("\n"));
        assert!(found.iter().all(|item| all().contains(item)), "{found:?}");
    }

    #[test]
    fn our_own_event_has_the_members_that_it_is_sent_with() {
        let sent = Continued { pid: 1, former_pid: 2, reason: "gone".to_owned() }.now();
        let data = sent.data.unwrap();
        let members: Vec<&str> = data.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!((sent.event.as_str(), members.as_slice()), (OWN_EVENT.0, &OWN_EVENT.1[..]));
    }

    #[test]
    fn values_of_arguments_are_parts_and_those_of_answers_are_not() {
        let both = |prefix: &str| {
            let mut items = Vec::new();
            parts_of(prefix, &Type::Bool, &mut items);
            parts_in(prefix, &Type::Bool, &Value::Bool(true), &mut items);
            items
        };
        let expected = ["argument a.b=true", "argument a.b=false", "argument a.b=true"];
        assert_eq!(both("argument a.b"), expected);
        assert_eq!(both("answer a.b"), [""; 0]);
    }

    #[test]
    fn parts_of_a_message_are_in_the_list() {
        let spec = COMMANDS.iter().find(|spec| spec.name == "query-status").unwrap();
        let value = serde_json::json!({ "running": true, "status": "running", "other": 1 });
        let mut found = Vec::new();
        parts_in(&answer(spec.name), &spec.returns, &value, &mut found);
        found.sort();
        let expected = [
            "answer query-status.running",
            "answer query-status.status",
            "answer query-status.status=running",
        ];
        assert_eq!(found, expected);
        assert!(found.iter().all(|item| all().contains(item)), "{found:?}");
    }
}
