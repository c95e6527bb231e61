//! Checks the table against the serde types: neither can change without the other.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value, json};

use super::types::*;
use super::*;
use crate::address::*;
use crate::command::*;
use crate::event::*;
use crate::info::*;
use crate::message::*;
use crate::migration::*;
use crate::run_state::*;

/// A deserializer that yields, instead of a value, the names that serde expects: a struct's fields
/// or an enum's values.
struct Names;

#[derive(Debug)]
struct Found(&'static [&'static str]);

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Found {}

impl de::Error for Found {
    fn custom<T: fmt::Display>(message: T) -> Self {
        panic!("neither struct nor enum: {message}")
    }
}

impl<'de> Deserializer<'de> for Names {
    type Error = Found;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Found> {
        panic!("neither struct nor enum")
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Found> {
        Err(Found(fields))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        values: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Found> {
        Err(Found(values))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}

fn names<T: for<'de> Deserialize<'de>>() -> BTreeSet<&'static str> {
    match T::deserialize(Names) {
        Err(Found(names)) => names.iter().copied().collect(),
        Ok(_) => unreachable!("Names never yields a value"),
    }
}

/// Returns the values that serde accepts for a tag, taken from its error about an unknown one.
fn tag_values<T: DeserializeOwned>(tag: &str) -> BTreeSet<String> {
    let complaint = match serde_json::from_value::<T>(json!({ tag: "?" })) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("'?' is a {tag}"),
    };
    let listed = complaint.split_once("expected ").expect("a list of values").1;
    listed.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn owned(values: &[&str]) -> BTreeSet<String> {
    values.iter().map(|&value| value.to_owned()).collect()
}

fn same_enum<T: for<'de> Deserialize<'de>>(table: &Enum) {
    assert_eq!(names::<T>(), table.values.iter().copied().collect(), "{}", table.name);
}

/// Checks that the members are the same, and that serde requires exactly those that the table
/// marks as required.
fn same_object<T: DeserializeOwned>(table: &Object) {
    let members: BTreeSet<_> = table.members.iter().map(|member| member.name).collect();
    assert_eq!(names::<T>(), members, "{}", table.name);
    same_optional_members::<T>(table, &Map::new());
}

fn same_optional_members<T: DeserializeOwned>(table: &Object, tags: &Map<String, Value>) {
    let full: Map<_, _> =
        table.members.iter().map(|m| (m.name.to_owned(), example(&m.of))).collect();
    let full: Map<_, _> = tags.clone().into_iter().chain(full).collect();
    let accepted = |map: &Map<String, Value>| {
        serde_json::from_value::<T>(Value::Object(map.clone())).map(drop).map_err(|e| e.to_string())
    };
    assert_eq!(accepted(&full), Ok(()), "{}", table.name);
    for member in table.members {
        let mut without = full.clone();
        without.shift_remove(member.name);
        let serde = accepted(&without).is_ok();
        assert_eq!(serde, member.optional, "{}.{}", table.name, member.name);
    }
}

/// Returns an example value of type `of`.
fn example(of: &Type) -> Value {
    match of {
        Type::Str => json!("text"),
        Type::Bool => json!(true),
        Type::Int | Type::Uint16 | Type::Uint64 => json!(1),
        Type::Number => json!(1.5),
        Type::Any => Value::Null,
        Type::Array(of) => json!([example(of)]),
        Type::Enum(of) => json!(of.values[0]),
        Type::Object(of) => {
            let mut map = Map::new();
            fill(of, &mut map);
            Value::Object(map)
        }
    }
}

fn fill(object: &Object, map: &mut Map<String, Value>) {
    for member in object.members {
        map.insert(member.name.to_owned(), example(&member.of));
    }
    if let Some(variants) = &object.variants {
        let tag = map[variants.tag].as_str().expect("a tag is text").to_owned();
        if let Some((_, more)) = variants.cases.iter().find(|(value, _)| *value == tag) {
            fill(more, map);
        }
    }
}

#[test]
fn enums_match_the_serde_types() {
    same_enum::<QmpCapability>(&QMP_CAPABILITY);
    same_enum::<RunState>(&RUN_STATE);
    same_enum::<ShutdownCause>(&SHUTDOWN_CAUSE);
    same_enum::<SysEmuTarget>(&SYS_EMU_TARGET);
    same_enum::<MigrationChannelType>(&MIGRATION_CHANNEL_TYPE);
    same_enum::<MigrationStatus>(&MIGRATION_STATUS);
    same_enum::<MigMode>(&MIG_MODE);
    same_enum::<MigrationCapability>(&MIGRATION_CAPABILITY);
    let transports = tag_values::<MigrationAddress>("transport");
    assert_eq!(transports, owned(MIGRATION_ADDRESS_TYPE.values));
    assert_eq!(tag_values::<SocketAddress>("type"), owned(SOCKET_ADDRESS_TYPE.values));
}

#[test]
fn objects_match_the_serde_types() {
    same_object::<QmpCapabilitiesArgs>(&QMP_CAPABILITIES_ARGS);
    same_object::<VersionInfo>(&VERSION_INFO);
    same_object::<VersionTriple>(&VERSION_TRIPLE);
    same_object::<CommandInfo>(&COMMAND_INFO);
    same_object::<NameInfo>(&NAME_INFO);
    same_object::<StatusInfo>(&STATUS_INFO);
    same_object::<CpuInfoFast>(&CPU_INFO_FAST);
    same_object::<MemoryInfo>(&MEMORY_INFO);
    same_object::<PmemsaveArgs>(&PMEMSAVE_ARGS);
    same_object::<MigrateArgs>(&MIGRATE_ARGS);
    same_object::<MigrateIncomingArgs>(&MIGRATE_INCOMING_ARGS);
    same_object::<MigrationChannel>(&MIGRATION_CHANNEL);
    same_object::<MigrationExecCommand>(&MIGRATION_EXEC_COMMAND);
    same_object::<FileMigrationArgs>(&FILE_MIGRATION_ARGS);
    same_object::<InetSocketAddress>(&INET_SOCKET_ADDRESS);
    same_object::<UnixSocketAddress>(&UNIX_SOCKET_ADDRESS);
    same_object::<VsockSocketAddress>(&VSOCK_SOCKET_ADDRESS);
    same_object::<FdSocketAddress>(&FD_SOCKET_ADDRESS);
    same_object::<MigrationInfo>(&MIGRATION_INFO);
    same_object::<MigrationParameters>(&MIGRATION_PARAMETERS);
    same_object::<MigrationCapabilityStatus>(&MIGRATION_CAPABILITY_STATUS);
    same_object::<MigrateSetCapabilitiesArgs>(&MIGRATE_SET_CAPABILITIES_ARGS);
}

#[test]
fn variants_match_the_serde_types() {
    fn cases(
        object: &'static Object,
    ) -> impl Iterator<Item = (Map<String, Value>, &'static Object)> {
        let variants = object.variants.as_ref().expect("a union");
        variants
            .cases
            .iter()
            .map(|(value, case)| (Map::from_iter([(variants.tag.to_owned(), json!(value))]), *case))
    }
    for (tags, case) in cases(&MIGRATION_ADDRESS).filter(|(_, case)| case.variants.is_none()) {
        same_optional_members::<MigrationAddress>(case, &tags);
    }
    for (tags, case) in cases(&SOCKET_ADDRESS) {
        same_optional_members::<SocketAddress>(case, &tags);
    }
}

#[test]
fn commands_match_the_serde_type() {
    let table = COMMANDS.iter().map(|command| command.name.to_owned()).collect();
    assert_eq!(tag_values::<Command>("execute"), table);
}

#[test]
fn commands_take_exactly_their_members() {
    for command in COMMANDS {
        let Value::Object(full) = example(&Type::Object(command.arguments)) else {
            panic!("arguments are an object")
        };
        let parsed = Command::from_parts(command.name, full.clone());
        let written = serde_json::to_value(parsed.as_ref().expect(command.name)).unwrap();
        assert_eq!(written["execute"], command.name);
        if !full.is_empty() {
            assert_eq!(written["arguments"], Value::Object(full.clone()), "{}", command.name);
        }
        for member in command.arguments.members {
            let mut without = full.clone();
            without.shift_remove(member.name);
            let parsed = Command::from_parts(command.name, without);
            assert_eq!(parsed.is_ok(), member.optional, "{}.{}", command.name, member.name);
        }
        let mut more = full;
        more.insert("surely-not-a-member".to_owned(), Value::Null);
        let refused = Command::from_parts(command.name, more).unwrap_err();
        assert_eq!(refused.desc, "Parameter 'surely-not-a-member' is unexpected");
    }
}

#[test]
fn events_match_the_serde_type() {
    let table = EVENTS.iter().map(|event| event.name.to_owned()).collect();
    assert_eq!(tag_values::<EventKind>("event"), table);
    for event in EVENTS {
        let data = Some(example(&Type::Object(event.data)));
        let data = data.filter(|_| !event.data.members.is_empty());
        let typed = EventKind::of(&Event::now(event.name, data.clone())).expect(event.name);
        let sent = typed.now();
        assert_eq!((sent.event.as_str(), sent.data), (event.name, data));
    }
}

#[test]
fn type_names_are_unique() {
    let mut seen = std::collections::BTreeMap::new();
    let mut visit = vec![];
    for command in COMMANDS {
        visit.push(Type::Object(command.arguments));
        visit.push(command.returns);
    }
    visit.extend(EVENTS.iter().map(|event| Type::Object(event.data)));
    while let Some(of) = visit.pop() {
        let (name, address) = match of {
            Type::Array(of) => {
                visit.push(*of);
                continue;
            }
            Type::Enum(of) => (of.name, std::ptr::from_ref(of) as usize),
            Type::Object(of) => (of.name, std::ptr::from_ref(of) as usize),
            _ => continue,
        };
        match seen.insert(name, address) {
            Some(earlier) => assert_eq!(earlier, address, "two types are called {name}"),
            None => {
                if let Type::Object(of) = of {
                    visit.extend(of.members.iter().map(|member| member.of));
                    let cases = of.variants.iter().flat_map(|variants| variants.cases);
                    visit.extend(cases.map(|(_, case)| Type::Object(case)));
                }
            }
        }
    }
}
