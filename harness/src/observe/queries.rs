//! Reads all QMP queries that need no argument, as facts.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::qmp::{Command, Qmp, QmpFault};
use crate::observe::facts::Facts;

/// Longer answers are replaced by their digest.
const LONG: usize = 2048;
/// Prefix of the names of commands that only query.
const PREFIX: &str = "query-";
/// Queries whose answers depend on the build.
const OF_BUILD: [&str; 3] = ["query-version", "query-commands", "query-qmp-schema"];
/// Queries for the settings of the next update.
const OF_MIGRATION: [&str; 2] = ["query-migrate-parameters", "query-migrate-capabilities"];

/// The queries to send.
#[derive(Clone, Debug, Default)]
pub struct Queries {
    /// Commands that need an argument.
    need_argument: BTreeSet<String>,
}

impl Queries {
    /// Reads from the VMM's schema, if it has one, which commands need an argument.
    pub fn of(qmp: &mut Qmp) -> Result<Self, QmpFault> {
        let schema = match qmp.execute(Command::plain("query-qmp-schema")) {
            Ok(schema) => schema,
            // Without a schema every query is tried.
            Err(QmpFault::Refused { .. }) => Value::Null,
            Err(other) => return Err(other),
        };
        Ok(Self { need_argument: need_argument(&schema) })
    }

    /// Sends all queries.
    pub fn ask(&self, qmp: &mut Qmp) -> Result<Facts, QmpFault> {
        let commands = qmp.execute(Command::plain("query-commands"))?;
        let names = commands.as_array().into_iter().flatten();
        let names = names.filter_map(|command| command["name"].as_str());
        let asks = |name: &&str| name.starts_with(PREFIX) && !self.need_argument.contains(*name);
        ask(qmp, &names.filter(asks).map(|name| name.to_owned().into()).collect::<Vec<_>>())
    }
}

/// Queries the settings that an update requested now would have.
pub fn of_migration(qmp: &mut Qmp) -> Result<Facts, QmpFault> {
    ask(qmp, &OF_MIGRATION.map(Cow::Borrowed))
}

/// The query that returned `item`.
fn query_of(item: &str) -> &str {
    item.split('.').next().unwrap_or(item)
}

/// Whether `item` is a setting of the next update.
pub fn is_of_migration(item: &str) -> bool {
    OF_MIGRATION.contains(&query_of(item))
}

/// Whether `item` may differ between builds, whose answers are `before` and `after`: it depends on the build, or
/// one of them does not know the query or, since each lists all that it knows, the setting.
pub fn is_of_build(item: &str, before: &Facts, after: &Facts) -> bool {
    let query = query_of(item);
    let knows = |facts: &Facts| match is_of_migration(item) {
        true => facts.get(item).is_some(),
        false => facts.iter().any(|(item, _)| query_of(item) == query),
    };
    OF_BUILD.contains(&query) || !knows(before) || !knows(after)
}

/// Sends all queries at once; an error response is a fact, too.
fn ask(qmp: &mut Qmp, names: &[Cow<'static, str>]) -> Result<Facts, QmpFault> {
    let commands: Vec<Command> = names.iter().map(|name| Command::plain(name.clone())).collect();
    let ids = qmp.send(&commands)?;
    let mut facts = Facts::default();
    for (name, id) in names.iter().zip(ids) {
        match qmp.answer(name, id) {
            Ok(value) => flatten(name, &value, &mut facts),
            Err(QmpFault::Refused { error, .. }) => facts.insert(name.as_ref(), error),
            Err(other) => return Err(other),
        }
    }
    Ok(facts)
}

fn flatten(name: &str, value: &Value, facts: &mut Facts) {
    let is_plain = |value: &Value| !value.is_array() && !value.is_object();
    match value {
        _ if OF_BUILD.contains(&name) => facts.insert(name, short(value.to_string())),
        // A list of words is one value.
        Value::Array(items) if !items.iter().all(is_plain) => {
            for (index, item) in items.iter().enumerate() {
                flatten(&format!("{name}.{index}"), item, facts);
            }
        }
        Value::Object(members) if !members.is_empty() => {
            for (member, value) in members {
                flatten(&format!("{name}.{member}"), value, facts);
            }
        }
        Value::String(text) => facts.insert(name, short(text.clone())),
        _ => facts.insert(name, short(value.to_string())),
    }
}

fn short(text: String) -> String {
    match text.len() {
        ..=LONG => text,
        bytes => format!("{bytes} bytes, digest {:016x}", xxh3_64(text.as_bytes())),
    }
}

/// The commands in a QMP schema that have an argument without default.
fn need_argument(schema: &Value) -> BTreeSet<String> {
    let entities = || schema.as_array().into_iter().flatten();
    let of_type = |kind: &'static str| entities().filter(move |e| e["meta-type"] == kind);
    let members = |e: &Value| e["members"].as_array().cloned().unwrap_or_default();
    let demanding: BTreeSet<&str> = of_type("object")
        .filter(|e| members(e).iter().any(|member| member.get("default").is_none()))
        .filter_map(|e| e["name"].as_str())
        .collect();
    of_type("command")
        .filter(|e| e["arg-type"].as_str().is_some_and(|name| demanding.contains(name)))
        .filter_map(|e| e["name"].as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_answer_becomes_one_fact_per_value() {
        let mut facts = Facts::default();
        let value = json!({ "a": [1, { "b": null }], "empty": [], "text": "x", "words": ["y", 1] });
        flatten("q", &value, &mut facts);
        let lines: Vec<_> = facts.iter().map(|(item, value)| format!("{item}={value}")).collect();
        assert_eq!(
            lines,
            ["q.a.0=1", "q.a.1.b=null", "q.empty=[]", "q.text=x", "q.words=[\"y\",1]"]
        );
    }

    #[test]
    fn a_long_answer_becomes_a_digest() {
        let digest = |last: &str| {
            let mut facts = Facts::default();
            flatten("q", &json!(["x".repeat(LONG), last]), &mut facts);
            facts
        };
        assert!(digest("a").get("q").is_some_and(|value| value.contains("digest")));
        assert_eq!(digest("a").changes(&digest("b")).len(), 1);
    }

    #[test]
    fn a_query_that_one_build_lacks_is_not_compared() {
        let facts = |items: &[(&str, &str)]| {
            items.iter().map(|(item, value)| ((*item).to_owned(), (*value).to_owned())).collect()
        };
        let parameters = ("query-migrate-parameters.mode", "normal");
        let limit = ("query-migrate-parameters.downtime-limit", "300");
        let before = [("query-name.name", "a"), ("query-failpoints.0.armed", "false"), parameters];
        let after = [("query-name.name", "b"), ("query-name.other", "c"), parameters, limit];
        let (before, after): (Facts, Facts) = (facts(&before), facts(&after));
        let of_build = |item| is_of_build(item, &before, &after);
        assert!(of_build("query-failpoints.0.armed") && of_build("query-version"));
        assert!(of_build(limit.0) && !of_build(parameters.0));
        assert!(!of_build("query-name.name") && !of_build("query-name.other"));
    }

    #[test]
    fn a_command_with_a_required_argument_is_not_sent() {
        let schema = json!([
            { "name": "query-a", "meta-type": "command", "arg-type": "1", "ret-type": "2" },
            { "name": "query-b", "meta-type": "command", "arg-type": "3", "ret-type": "2" },
            { "name": "query-c", "meta-type": "command", "arg-type": "0", "ret-type": "2" },
            { "name": "1", "meta-type": "object", "members": [{ "name": "x", "type": "str", "default": null }] },
            { "name": "3", "meta-type": "object", "members": [{ "name": "x", "type": "str" }] },
            { "name": "0", "meta-type": "object", "members": [] },
        ]);
        assert_eq!(need_argument(&schema), BTreeSet::from(["query-b".to_owned()]));
        assert_eq!(need_argument(&Value::Null), BTreeSet::new());
    }
}
