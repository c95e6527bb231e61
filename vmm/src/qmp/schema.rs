//! The answer to `query-qmp-schema`: the table of `cpr_qmp::schema` in QEMU's introspection format.
//!
//! Source: QEMU `qapi/introspect.json`. QEMU numbers its types; here they keep their names.

use std::collections::BTreeSet;

use cpr_qmp::schema::{COMMANDS, EVENTS, Enum, Object, Type};
use serde_json::{Map, Value, json};

/// Returns every command, every event, and every type they refer to, each once.
pub fn schema() -> Value {
    let mut entities = Entities::default();
    for command in COMMANDS {
        let arguments = entities.object(command.arguments);
        let returns = entities.name_of(&command.returns);
        entities.list.push(json!({
            "name": command.name, "meta-type": "command",
            "arg-type": arguments, "ret-type": returns,
        }));
    }
    for event in EVENTS {
        let data = entities.object(event.data);
        entities.list.push(json!({
            "name": event.name, "meta-type": "event", "arg-type": data,
        }));
    }
    Value::Array(entities.list)
}

#[derive(Default)]
struct Entities {
    list: Vec<Value>,
    seen: BTreeSet<String>,
}

impl Entities {
    /// Returns the type's name, and lists the type if it is not listed yet.
    fn name_of(&mut self, of: &Type) -> String {
        match of {
            Type::Str => self.builtin("str", "string"),
            Type::Bool => self.builtin("bool", "boolean"),
            // Clients need not know the widths, so QEMU shows every integer as `int`.
            Type::Int | Type::Uint16 | Type::Uint64 => self.builtin("int", "int"),
            Type::Number => self.builtin("number", "number"),
            Type::Any => self.builtin("any", "value"),
            Type::Array(of) => {
                let element = self.name_of(of);
                let name = format!("[{element}]");
                self.once(
                    &name,
                    |name| json!({ "name": name, "meta-type": "array", "element-type": element }),
                )
            }
            Type::Enum(of) => self.enumeration(of),
            Type::Object(of) => self.object(of),
        }
    }

    fn builtin(&mut self, name: &str, json_type: &str) -> String {
        self.once(
            name,
            |name| json!({ "name": name, "meta-type": "builtin", "json-type": json_type }),
        )
    }

    fn enumeration(&mut self, of: &Enum) -> String {
        self.once(of.name, |name| {
            let members: Vec<_> = of.values.iter().map(|value| json!({ "name": value })).collect();
            json!({ "name": name, "meta-type": "enum", "members": members, "values": of.values })
        })
    }

    fn object(&mut self, of: &Object) -> String {
        if !self.seen.insert(of.name.to_owned()) {
            return of.name.to_owned();
        }
        let mut entity = Map::new();
        entity.insert("name".into(), json!(of.name));
        entity.insert("meta-type".into(), json!("object"));
        let mut members = Vec::new();
        for member in of.members {
            let mut described = json!({ "name": member.name, "type": self.name_of(&member.of) });
            if member.optional {
                described["default"] = Value::Null;
            }
            members.push(described);
        }
        entity.insert("members".into(), members.into());
        if let Some(variants) = &of.variants {
            let mut cases = Vec::new();
            for (value, object) in variants.cases {
                cases.push(json!({ "case": value, "type": self.object(object) }));
            }
            entity.insert("tag".into(), json!(variants.tag));
            entity.insert("variants".into(), cases.into());
        }
        self.list.push(Value::Object(entity));
        of.name.to_owned()
    }

    fn once(&mut self, name: &str, entity: impl FnOnce(&str) -> Value) -> String {
        if self.seen.insert(name.to_owned()) {
            self.list.push(entity(name));
        }
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(schema: &'a Value, name: &str) -> &'a Value {
        let found = schema.as_array().unwrap().iter().find(|entity| entity["name"] == *name);
        found.unwrap_or_else(|| panic!("no {name} in the schema"))
    }

    fn member<'a>(schema: &'a Value, object: &'a Value, name: &str) -> &'a Value {
        let members = object["members"].as_array().unwrap();
        let member = members.iter().find(|member| member["name"] == *name).unwrap();
        find(schema, member["type"].as_str().unwrap())
    }

    #[test]
    fn migration_modes_are_found_as_in_qemu() {
        let schema = schema();
        let command = find(&schema, "migrate-set-parameters");
        let parameters = find(&schema, command["arg-type"].as_str().unwrap());
        let mode = member(&schema, parameters, "mode");
        assert_eq!(mode["meta-type"], "enum");
        let names: Vec<_> =
            mode["members"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
        assert_eq!(names, ["normal", "cpr-reboot", "cpr-transfer", "cpr-exec"]);
        let command = member(&schema, parameters, "cpr-exec-command");
        assert_eq!(command["element-type"], "str");
    }

    #[test]
    fn schema_matches_its_declared_type() {
        let declared = cpr_qmp::schema::command("query-qmp-schema").unwrap().returns;
        assert_eq!(declared.check(&schema(), ""), Ok(()));
    }

    #[test]
    fn every_named_type_is_listed_once() {
        fn types<'a>(value: &'a Value, named: &mut Vec<&'a str>) {
            let references = ["type", "element-type", "arg-type", "ret-type"];
            match value {
                Value::Array(items) => items.iter().for_each(|item| types(item, named)),
                Value::Object(map) => map.iter().for_each(|(key, value)| {
                    if references.contains(&key.as_str()) {
                        named.extend(value.as_str());
                    }
                    types(value, named);
                }),
                _ => {}
            }
        }
        let schema = schema();
        let mut named = Vec::new();
        types(&schema, &mut named);
        assert!(named.len() > 100);
        for name in named {
            find(&schema, name);
        }
        let names: Vec<_> = schema.as_array().unwrap().iter().map(|e| &e["name"]).collect();
        let distinct: BTreeSet<_> = names.iter().map(|name| name.as_str().unwrap()).collect();
        assert_eq!(distinct.len(), names.len());
    }

    #[test]
    fn the_whole_schema() {
        let lines: Vec<_> = schema().as_array().unwrap().iter().map(Value::to_string).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }
}
