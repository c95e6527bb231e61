//! Checks a value against a type; the wording of errors is QEMU's
//! (`qapi/qobject-input-visitor.c`).

use serde_json::{Map, Value};

use super::{Object, Type};
use crate::message::QmpError;

impl Type {
    /// Checks `value`, which is at `path` (such as `channels[0].addr`) in the arguments.
    pub fn check(&self, value: &Value, path: &str) -> Result<(), QmpError> {
        match self {
            Self::Any => Ok(()),
            Self::Str => expect(value.is_string(), path, "string"),
            Self::Bool => expect(value.is_boolean(), path, "boolean"),
            Self::Int => expect(value.is_i64(), path, "integer"),
            Self::Uint16 => {
                in_range(value.as_u64().is_some_and(|n| n <= u16::MAX.into()), path, "uint16")
            }
            Self::Uint64 => in_range(value.is_u64(), path, "uint64"),
            Self::Number => expect(value.is_number(), path, "number"),
            Self::Array(of) => {
                let Value::Array(items) = value else { return Err(wrong_type(path, "array")) };
                let mut numbered = items.iter().enumerate();
                numbered.try_for_each(|(i, item)| of.check(item, &format!("{path}[{i}]")))
            }
            Self::Enum(of) => match value {
                Value::String(text) if of.values.contains(&text.as_str()) => Ok(()),
                Value::String(text) => Err(QmpError::generic(format!(
                    "Parameter '{path}' does not accept value '{text}'"
                ))),
                _ => Err(wrong_type(path, "string")),
            },
            Self::Object(of) => of.check(value, path),
        }
    }
}

impl Object {
    /// Checks `value`, which is at `path`: no member may be missing, of a wrong type, or
    /// unexpected.
    pub fn check(&self, value: &Value, path: &str) -> Result<(), QmpError> {
        let Value::Object(map) = value else { return Err(wrong_type(path, "object")) };
        // A variant may have variants itself, tagged by a member of its own.
        let (mut layers, mut next) = (Vec::new(), Some(self));
        while let Some(layer) = next {
            layer.check_members(map, path)?;
            layers.push(layer);
            next = layer.variant(map);
        }
        match map.keys().find(|key| !layers.iter().any(|layer| layer.has(key))) {
            Some(key) => {
                Err(QmpError::generic(format!("Parameter '{}' is unexpected", join(path, key))))
            }
            None => Ok(()),
        }
    }

    fn check_members(&self, map: &Map<String, Value>, path: &str) -> Result<(), QmpError> {
        for member in self.members {
            let path = join(path, member.name);
            match map.get(member.name) {
                Some(value) => member.of.check(value, &path)?,
                None if member.optional => {}
                None => return Err(QmpError::generic(format!("Parameter '{path}' is missing"))),
            }
        }
        Ok(())
    }

    fn variant(&self, map: &Map<String, Value>) -> Option<&'static Object> {
        let variants = self.variants.as_ref()?;
        let tag = map.get(variants.tag)?.as_str()?;
        variants.cases.iter().find(|(value, _)| *value == tag).map(|(_, object)| *object)
    }

    fn has(&self, name: &str) -> bool {
        self.members.iter().any(|member| member.name == name)
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn expect(fits: bool, path: &str, expected: &str) -> Result<(), QmpError> {
    if fits { Ok(()) } else { Err(wrong_type(path, expected)) }
}

fn wrong_type(path: &str, expected: &str) -> QmpError {
    QmpError::generic(format!("Invalid parameter type for '{path}', expected: {expected}"))
}

fn in_range(fits: bool, path: &str, expected: &str) -> Result<(), QmpError> {
    if fits {
        Ok(())
    } else {
        Err(QmpError::generic(format!("Parameter '{path}' expects {expected}")))
    }
}
