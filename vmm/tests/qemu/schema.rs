//! Compares our answer to `query-qmp-schema` with QEMU's, for the commands and events of both.
//!
//! QEMU's type names are masked numbers, so types are compared by structure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::peer::Peer;
use crate::support::Scene;

/// Checks that our schema is a subset of QEMU's, so that QEMU's clients work with ours.
pub fn ours_is_a_subset() {
    let (theirs, ours) = (Scene::new(), Scene::new());
    let ask = |peer: Peer| {
        let mut wire = peer.connect();
        wire.ask("qmp_capabilities");
        Schema::new(wire.ask("query-qmp-schema"))
    };
    let theirs = ask(Peer::qemu_with(&theirs, "-machine none"));
    let ours = ask(Peer::ours(&ours));

    let mut comparison = Comparison::new(&ours, &theirs);
    let mut only_ours = Vec::new();
    for (name, entity) in &ours.0 {
        let kind = text(entity, "meta-type");
        match theirs.0.get(name) {
            _ if !["command", "event"].contains(&kind) => {}
            Some(other) if kind == text(other, "meta-type") => {
                comparison.shared += 1;
                comparison.types("arg-type", entity, other, name);
                if kind == "command" {
                    comparison.types("ret-type", entity, other, &format!("{name}()"));
                }
            }
            _ => only_ours.push(name.as_str()),
        }
    }
    assert_eq!(comparison.wrong, BTreeSet::new());
    assert_eq!(only_ours, ["query-failpoints", "x-audit", "x-inject", "x-set-failpoint"]);
    let Comparison { shared, members, values, extensions, .. } = comparison;
    let extensions = Vec::from_iter(extensions).join("\n");
    println!("{shared} commands and events, {members} members, {values} values of enumerations");
    insta::with_settings!({ prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("schema_extensions", extensions);
    });
}

struct Schema(BTreeMap<String, Value>);

impl Schema {
    fn new(answer: Value) -> Self {
        let Value::Array(entities) = answer else { panic!("not a schema: {answer}") };
        Self(entities.into_iter().map(|e| (text(&e, "name").to_owned(), e)).collect())
    }

    fn get(&self, name: &str) -> &Value {
        self.0.get(name).unwrap_or_else(|| panic!("the schema lacks its type {name}"))
    }
}

struct Comparison<'a> {
    ours: &'a Schema,
    theirs: &'a Schema,
    shared: usize,
    members: usize,
    values: usize,
    /// Pairs of types that were already compared.
    seen: BTreeSet<(String, String)>,
    extensions: BTreeSet<String>,
    wrong: BTreeSet<String>,
}

impl<'a> Comparison<'a> {
    fn new(ours: &'a Schema, theirs: &'a Schema) -> Self {
        let (extensions, wrong) = (BTreeSet::new(), BTreeSet::new());
        Self {
            ours,
            theirs,
            shared: 0,
            members: 0,
            values: 0,
            seen: BTreeSet::new(),
            extensions,
            wrong,
        }
    }

    /// Compares the types that `ours` and `theirs` name under `key`.
    fn types(&mut self, key: &str, ours: &Value, theirs: &Value, path: &str) {
        let names = (text(ours, key).to_owned(), text(theirs, key).to_owned());
        if !self.seen.insert(names.clone()) {
            return;
        }
        let (ours, theirs) = (self.ours.get(&names.0), self.theirs.get(&names.1));
        let kinds = (text(ours, "meta-type"), text(theirs, "meta-type"));
        match kinds {
            ("builtin", "builtin") => {
                let (ours, theirs) = (text(ours, "json-type"), text(theirs, "json-type"));
                self.require(ours == theirs, format!("{path}: {ours}, QEMU: {theirs}"));
            }
            ("array", "array") => self.types("element-type", ours, theirs, &format!("{path}[]")),
            ("enum", "enum") => self.enums(ours, theirs, path),
            ("object", "object") => self.objects(ours, theirs, path),
            (ours, theirs) => self.wrong(format!("{path}: {ours}, QEMU: {theirs}")),
        }
    }

    fn enums(&mut self, ours: &Value, theirs: &Value, path: &str) {
        let theirs = by(theirs, "members", "name");
        for name in by(ours, "members", "name").keys() {
            self.values += 1;
            self.require(theirs.contains_key(name), format!("{path}: QEMU has no value {name}"));
        }
    }

    fn objects(&mut self, ours: &Value, theirs: &Value, path: &str) {
        let (our_members, their_members) =
            (by(ours, "members", "name"), by(theirs, "members", "name"));
        for (name, member) in &our_members {
            let path = format!("{path}.{name}");
            self.members += 1;
            match their_members.get(name) {
                Some(other) => {
                    let optional = |member: &Value| member.get("default").is_some();
                    let same = optional(member) == optional(other);
                    self.require(same, format!("{path}: optional only here or only in QEMU"));
                    self.types("type", member, other, &path);
                }
                None if name.starts_with("x-") => drop(self.extensions.insert(path)),
                None => self.wrong(format!("{path}: QEMU has no such member")),
            }
        }
        for (name, member) in &their_members {
            let left_out = !our_members.contains_key(name) && member.get("default").is_none();
            self.require(!left_out, format!("{path}.{name}: QEMU always has it"));
        }
        self.variants(ours, theirs, path);
    }

    fn variants(&mut self, ours: &Value, theirs: &Value, path: &str) {
        let tag = ours.get("tag").or(theirs.get("tag"));
        let same = ours.get("tag").is_none() || tag == theirs.get("tag");
        self.require(same, format!("{path}: QEMU has another tag"));
        let (our_cases, their_cases) =
            (by(ours, "variants", "case"), by(theirs, "variants", "case"));
        for (case, variant) in &our_cases {
            match their_cases.get(case) {
                Some(other) => self.types("type", variant, other, &format!("{path}<{case}>")),
                None => self.wrong(format!("{path}: QEMU has no case {case}")),
            }
        }
        // A case that we omit must belong to a value that we omit, or add no members.
        let Some(tag) = tag.and_then(Value::as_str) else { return };
        let members = by(ours, "members", "name");
        let Some(member) = members.get(tag) else { return };
        let values = by(self.ours.get(text(member, "type")), "members", "name");
        for (case, variant) in their_cases {
            let variant = self.theirs.get(text(variant, "type"));
            let adds = !by(variant, "members", "name").is_empty() || variant.get("tag").is_some();
            let left_out = values.contains_key(case) && !our_cases.contains_key(case);
            self.require(!(adds && left_out), format!("{path}<{case}>: QEMU's case adds members"));
        }
    }

    fn require(&mut self, holds: bool, otherwise: String) {
        if !holds {
            self.wrong(otherwise);
        }
    }

    fn wrong(&mut self, what: String) {
        self.wrong.insert(what);
    }
}

fn text<'a>(entity: &'a Value, key: &str) -> &'a str {
    entity[key].as_str().unwrap_or_else(|| panic!("{entity} has no {key}"))
}

/// Returns the items of the list `list`, indexed by their text under `key`.
fn by<'a>(entity: &'a Value, list: &str, key: &str) -> BTreeMap<&'a str, &'a Value> {
    let items = entity[list].as_array().into_iter().flatten();
    items.map(|item| (text(item, key), item)).collect()
}
