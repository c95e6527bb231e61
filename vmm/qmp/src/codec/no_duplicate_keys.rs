//! A JSON value without duplicate object members: which of them counts would depend on the parser.
//! A command that two readers may read differently is refused, as in QEMU
//! (`qobject/json-parser.c`).

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// A value without duplicate members.
pub(super) struct NoDuplicateKeys(pub(super) Value);

impl<'de> Deserialize<'de> for NoDuplicateKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Builder).map(Self)
    }
}

struct Builder;

impl<'de> Visitor<'de> for Builder {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(NoDuplicateKeys(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some((name, NoDuplicateKeys(value))) = map.next_entry::<String, _>()? {
            if members.contains_key(&name) {
                return Err(A::Error::custom(format_args!("duplicate key '{name}'")));
            }
            members.insert(name, value);
        }
        Ok(Value::Object(members))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(r#"{"a": 1, "a": 1}"#, "duplicate key 'a' at line 1 column 16")]
    #[case(
        r#"[{"b": {"a": null, "c": [], "\u0061": 0}}]"#,
        "duplicate key 'a' at line 1 column 40"
    )]
    fn duplicate_members_are_refused(#[case] text: &str, #[case] refusal: &str) {
        let refused =
            serde_json::from_str::<NoDuplicateKeys>(text).map(|NoDuplicateKeys(value)| value);
        assert_eq!(refused.unwrap_err().to_string(), refusal);
    }

    #[rstest]
    #[case(r#"{"b": [{"a": 1}, {"a": -1}], "a": {"a": 18446744073709551615}}"#)]
    #[case(r#"[null, true, 1.5, 1e400, "", "\u00e4\n", {}, []]"#)]
    #[case("18446744073709551616")]
    fn other_values_are_read_as_by_serde_json(#[case] text: &str) {
        let read = serde_json::from_str(text).map(|NoDuplicateKeys(value)| value);
        let expected = serde_json::from_str::<Value>(text);
        assert_eq!(read.map_err(|e| e.to_string()), expected.map_err(|e| e.to_string()));
    }
}
