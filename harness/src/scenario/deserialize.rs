//! Deserializes a TOML tree, with errors in the words of a scenario instead of those of serde.
//!
//! The deserializer of `toml` reports only text, which names Rust types; this one knows at each place
//! what is accepted there.

use std::ops::Range;

use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess};
use serde::de::{IntoDeserializer, VariantAccess, Visitor};
use serde::forward_to_deserialize_any;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::hint;
use super::mistake::Mistake;

type Entry<'a> = (&'a Spanned<DeString<'a>>, &'a Spanned<DeValue<'a>>);

/// A place in a tree.
#[derive(Clone)]
pub struct Node<'a> {
    /// The value; none: the name of a choice is there without the value that it needs.
    value: Option<&'a DeValue<'a>>,
    span: Range<usize>,
    /// The key or choice whose value this is.
    name: &'a str,
}

impl<'a> Node<'a> {
    /// The root of a tree.
    pub fn root(value: &'a Spanned<DeValue<'a>>) -> Self {
        Self::of(value, "")
    }

    fn of(value: &'a Spanned<DeValue<'a>>, name: &'a str) -> Self {
        Self { value: Some(value.get_ref()), span: value.span(), name }
    }

    /// The error that something else than `expected` is here; `form` is its shortest form.
    fn not(&self, expected: &str, form: &str) -> Mistake {
        let name = self.name;
        let mistake = match self.value {
            Some(value) => Mistake::new(format!("expected {expected}, found {}", found(value))),
            None => Mistake::new(format!("`{name}` needs a value"))
                .label(format!("write `{{ {name} = {form} }}`")),
        };
        mistake.at(self.span.clone())
    }

    /// The error that the number here is not between `min` and `max`, or no number.
    fn integer(&self, min: i128, max: i128) -> Result<i128, Mistake> {
        let expected = match (min, max) {
            (0, 0..=0xffff) => format!("a whole number from 0 to {max}"),
            (0, _) => "a whole number, 0 or more".to_owned(),
            _ => "a whole number".to_owned(),
        };
        let Some(DeValue::Integer(integer)) = self.value else {
            return Err(self.not(&expected, "1"));
        };
        let text = integer.as_str();
        let beyond = if text.starts_with('-') { i128::MIN } else { i128::MAX };
        let number = i128::from_str_radix(text, integer.radix()).unwrap_or(beyond);
        match number {
            _ if number > max => Err(self.not(&format!("a whole number up to {max}"), "1")),
            _ if number < min => Err(self.not(&expected, "1")),
            _ => Ok(number),
        }
    }
}

/// Names a value that is not accepted.
fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text \"{text}\""),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(number) => format!("the number {number}"),
        DeValue::Boolean(truth) => truth.to_string(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $kind:ident),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
            let number = self.integer($kind::MIN.into(), $kind::MAX.into())?;
            // Cannot fail: it is in the range of the type.
            let number = $kind::try_from(number).map_err(de::Error::custom)?;
            visitor.$visit(number).map_err(|e: Mistake| e.at_or_in(self.span))
        }
    )*};
}

impl<'de> Deserializer<'de> for Node<'_> {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        let span = self.span.clone();
        let visited = match self.value {
            None => Err(self.not("a value", "…")),
            Some(DeValue::String(text)) => visitor.visit_str(text),
            Some(DeValue::Integer(_)) => visitor.visit_i64(
                i64::try_from(self.integer(i64::MIN.into(), i64::MAX.into())?)
                    .map_err(de::Error::custom)?,
            ),
            Some(DeValue::Float(number)) => {
                visitor.visit_f64(number.as_str().parse().map_err(de::Error::custom)?)
            }
            Some(DeValue::Boolean(truth)) => visitor.visit_bool(*truth),
            Some(DeValue::Datetime(time)) => visitor.visit_string(time.to_string()),
            Some(DeValue::Array(values)) => visitor.visit_seq(Elements(values.iter(), self.name)),
            Some(DeValue::Table(table)) => visitor.visit_map(Entries::of(table)),
        };
        visited.map_err(|e| e.at_or_in(span))
    }

    integers! {
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.value {
            Some(DeValue::Boolean(_)) => self.deserialize_any(visitor),
            _ => Err(self.not("`true` or `false`", "true")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.value {
            Some(DeValue::String(_)) => self.deserialize_any(visitor),
            _ => Err(self.not("text in quotes", "\"…\"")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        let span = self.span.clone();
        visitor.visit_newtype_struct(self).map_err(|e| e.at_or_in(span))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.value {
            Some(DeValue::Array(_)) => self.deserialize_any(visitor),
            _ => Err(self.not("a list", "[…]")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.value {
            Some(DeValue::Table(_)) => self.deserialize_any(visitor),
            _ => Err(self.not("a table", "{ … }")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        keys: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        if let Some(DeValue::Table(_)) = self.value {
            return self.deserialize_any(visitor);
        }
        // Without any key it shows whether one is required.
        let none = DeTable::default();
        let form = match visitor.visit_map(Entries::of(&none)) {
            Ok(_) => "{}",
            Err(_) => "{ … }",
        };
        Err(with_accepted(self.not("a table of options", form), keys))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        kind: &'static str,
        choices: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        let span = self.span.clone();
        let choice = match self.value {
            Some(DeValue::String(text)) => {
                Choice { name: text, at: span.clone(), value: None, span: span.clone() }
            }
            Some(DeValue::Table(table)) => {
                let mut entries: Vec<Entry<'_>> = table.iter().collect();
                entries.sort_by_key(|(key, _)| key.span().start);
                let Some((key, value)) = entries.first() else {
                    let mistake = Mistake::new("this table is empty: it needs one key").at(span);
                    return Err(with_accepted(mistake, choices));
                };
                if let Some((surplus, _)) = entries.get(1) {
                    let mistake = Mistake::new(format!(
                        "unexpected key `{}`: this table has one key, here `{}`",
                        surplus.get_ref(),
                        key.get_ref()
                    ));
                    let label = format!("options belong into the table of `{}`", key.get_ref());
                    return Err(mistake.at(surplus.span()).label(label));
                }
                Choice {
                    name: key.get_ref(),
                    at: key.span(),
                    value: Some(value),
                    span: span.clone(),
                }
            }
            _ => {
                return Err(with_accepted(
                    self.not("a name or a table with one key", "…"),
                    choices,
                ));
            }
        };
        if !choices.contains(&choice.name) {
            let kind = match (kind, choice.value) {
                ("Step", _) => "step",
                ("CommandKind", _) => "command",
                (_, Some(_)) => "key",
                (_, None) => "value",
            };
            return Err(Mistake::unknown(kind, choice.name, choices).at(choice.at));
        }
        visitor.visit_enum(choice).map_err(|e| e.at_or_in(span))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_str(visitor)
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct ignored_any
    }
}

/// Reads a value; an error of its own type, which knows no place, is at the value.
fn read<'de, T: DeserializeSeed<'de>>(seed: T, node: Node<'_>) -> Result<T::Value, Mistake> {
    let span = node.span.clone();
    seed.deserialize(node).map_err(|e| e.at_or_in(span))
}

fn with_accepted(mistake: Mistake, words: &[&str]) -> Mistake {
    match hint::accepted(words, false) {
        Some(accepted) => mistake.note(accepted),
        None => mistake,
    }
}

/// The elements of a list, and the key of the list.
struct Elements<'a>(std::slice::Iter<'a, Spanned<DeValue<'a>>>, &'a str);

impl<'de> SeqAccess<'de> for Elements<'_> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Mistake> {
        let Some(value) = self.0.next() else { return Ok(None) };
        read(seed, Node::of(value, self.1)).map(Some)
    }
}

/// The entries of a table.
struct Entries<'a> {
    left: std::vec::IntoIter<Entry<'a>>,
    value: Option<Entry<'a>>,
}

impl<'a> Entries<'a> {
    fn of(table: &'a DeTable<'a>) -> Self {
        Self { left: table.iter().collect::<Vec<_>>().into_iter(), value: None }
    }
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Mistake> {
        self.value = self.left.next();
        let Some((key, _)) = self.value else { return Ok(None) };
        let name = seed.deserialize(key.get_ref().as_ref().into_deserializer());
        name.map(Some).map_err(|e: Mistake| e.at_or_in(key.span()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let Some((key, value)) = self.value else {
            return Err(de::Error::custom("a value was read before its key"));
        };
        read(seed, Node::of(value, key.get_ref()))
    }
}

/// One of several names, with or without a value.
struct Choice<'a> {
    name: &'a str,
    /// Where the name is.
    at: Range<usize>,
    value: Option<&'a Spanned<DeValue<'a>>>,
    /// Where the whole is.
    span: Range<usize>,
}

impl<'a> Choice<'a> {
    fn value(self) -> Node<'a> {
        match self.value {
            Some(value) => Node::of(value, self.name),
            None => Node { value: None, span: self.span, name: self.name },
        }
    }
}

impl<'de> EnumAccess<'de> for Choice<'_> {
    type Error = Mistake;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Mistake> {
        let name = seed.deserialize(self.name.into_deserializer());
        name.map_err(|e: Mistake| e.at_or_in(self.at.clone())).map(|name| (name, self))
    }
}

impl<'de> VariantAccess<'de> for Choice<'_> {
    type Error = Mistake;

    fn unit_variant(self) -> Result<(), Mistake> {
        match self.value.map(|value| value.get_ref()) {
            None => Ok(()),
            Some(DeValue::Table(table)) if table.is_empty() => Ok(()),
            Some(_) => Err(Mistake::new(format!("`{}` takes no value", self.name))
                .label(format!("write `\"{}\"`", self.name))
                .at(self.span)),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Mistake> {
        read(seed, self.value())
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Mistake> {
        self.value().deserialize_seq(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        keys: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        self.value().deserialize_struct("", keys, visitor)
    }
}
