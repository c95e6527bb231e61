//! Expands the `[matrix]` of a scenario file to one case for each combination of values.
//!
//! A value replaces `"${key}"` in keys and strings, so anything in a scenario can vary. It takes the
//! place of the string, so that errors of every expanded case name a place in the file.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::hint;
use super::mistake::Mistake;
use super::tree::Tree;

/// One combination of values: pairs of key and value, sorted by key.
pub type Choice<'a> = Vec<(String, DeValue<'a>)>;

/// The largest number of combinations, each of which becomes a case.
const MAX_CHOICES: usize = 10_000;

/// The values of each key.
#[derive(Default)]
pub struct Matrix<'a>(BTreeMap<String, Axis<'a>>);

struct Axis<'a> {
    at: Range<usize>,
    values: Vec<Spanned<DeValue<'a>>>,
}

impl<'a> Matrix<'a> {
    /// Takes the matrix out of `tree`, with what is wrong with it.
    pub fn take(tree: &mut Tree<'a>) -> (Self, Vec<Mistake>) {
        let DeValue::Table(file) = tree.get_mut() else { return (Self::default(), Vec::new()) };
        let Some(matrix) = file.remove("matrix") else { return (Self::default(), Vec::new()) };
        let at = matrix.span();
        let DeValue::Table(table) = matrix.into_inner() else {
            let mistake = Mistake::new("`matrix` must be a table of lists");
            return (Self::default(), vec![mistake.label("write `{ key = [value, …] }`").at(at)]);
        };
        let mut mistakes = Vec::new();
        let mut axes = BTreeMap::new();
        for (key, values) in table {
            let (at, key) = (key.span(), key.into_inner().into_owned());
            let place = values.span();
            let values: Vec<Spanned<DeValue<'a>>> = match values.into_inner() {
                DeValue::Array(values) if !values.is_empty() => values.into_iter().collect(),
                _ => {
                    let wrong = Mistake::new(format!("`matrix.{key}` must be a list of values"));
                    mistakes.push(wrong.label("write `[value, …]`").at(place));
                    Vec::new()
                }
            };
            mistakes.extend(wrong_values(&key, &values));
            axes.insert(key, Axis { at, values });
        }
        let counts = axes.values().map(|axis| axis.values.len());
        let count = counts.fold(1, usize::saturating_mul);
        if count > MAX_CHOICES {
            let wrong = format!("`matrix` has {count} combinations; {MAX_CHOICES} are accepted");
            mistakes.push(Mistake::new(wrong).at(at));
            axes.values_mut().for_each(|axis| axis.values.truncate(1));
        }
        (Self(axes), mistakes)
    }

    /// What is wrong with the placeholders in `tree`, which comes from `text`, and the unused keys.
    pub fn placeholders(&self, tree: &Tree<'_>, text: &str) -> Vec<Mistake> {
        let mut found = Vec::new();
        find(tree, text, &mut found);
        let keys: Vec<&str> = self.0.keys().map(String::as_str).collect();
        let (mut mistakes, mut meant) = (Vec::new(), Vec::new());
        for Placeholder { key, at } in &found {
            let wrong = match key {
                Some(key) if self.0.contains_key(key) => continue,
                Some(key) => {
                    let near = hint::nearest(key, &keys);
                    meant.extend(near);
                    not_in_matrix(key, near, &keys)
                }
                None => Mistake::new("`${` without `}`").label("write `${key}`"),
            };
            mistakes.push(wrong.at(at.clone()));
        }
        for (key, axis) in &self.0 {
            let used = found.iter().any(|used| used.key.as_ref() == Some(key));
            if !used && !meant.contains(&key.as_str()) {
                let unused = Mistake::new(format!("`matrix.{key}` is unused"));
                let label = format!("write \"${{{key}}}\" where it applies");
                mistakes.push(unused.label(label).at(axis.at.clone()));
            }
        }
        mistakes
    }

    /// All combinations; one empty choice without a matrix.
    pub fn choices(&self) -> Vec<Choice<'a>> {
        let mut all = vec![Choice::new()];
        for (key, axis) in &self.0 {
            let with = |choice: &Choice<'a>, value: &Spanned<DeValue<'a>>| {
                let mut choice = choice.clone();
                choice.push((key.clone(), value.get_ref().clone()));
                choice
            };
            all = all
                .iter()
                .flat_map(|choice| axis.values.iter().map(move |value| with(choice, value)))
                .collect();
        }
        all
    }
}

fn not_in_matrix(key: &str, near: Option<&str>, keys: &[&str]) -> Mistake {
    let wrong = Mistake::new(format!("`${{{key}}}` is not in [matrix]"));
    match (near, keys) {
        (_, []) => wrong.note(format!("add its values: [matrix] {key} = […]")),
        (Some(near), _) => wrong.label(format!("did you mean `${{{near}}}`?")),
        (None, keys) => wrong.note(format!("keys of [matrix]: `{}`", keys.join("`, `"))),
    }
}

/// What is wrong with single values of `matrix.key`.
fn wrong_values(key: &str, values: &[Spanned<DeValue<'_>>]) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let Some(text) = plain(value.get_ref()) else {
            let wrong = format!("`matrix.{key}` accepts only text, whole numbers, true and false");
            mistakes.push(Mistake::new(wrong).at(value.span()));
            continue;
        };
        if text.contains("${") {
            let wrong = format!("a value of `matrix.{key}` cannot contain a placeholder");
            mistakes.push(Mistake::new(wrong).at(value.span()));
        }
        let first = values[..index].iter().find(|v| plain(v.get_ref()).as_ref() == Some(&text));
        if let Some(first) = first {
            let twice = Mistake::new(format!("`{text}` is twice in `matrix.{key}`"));
            let twice = twice.label("its cases would have the same names").at(value.span());
            mistakes.push(Mistake { other: Some(Box::new((first.span(), "first here"))), ..twice });
        }
    }
    mistakes
}

/// A `${key}`; no key if it is not closed.
struct Placeholder {
    key: Option<String>,
    at: Range<usize>,
}

fn find(value: &Tree<'_>, text: &str, found: &mut Vec<Placeholder>) {
    match value.get_ref() {
        DeValue::String(string) => find_in(string, value.span(), text, found),
        DeValue::Array(values) => values.iter().for_each(|value| find(value, text, found)),
        DeValue::Table(table) => {
            for (key, value) in table {
                find_in(key.get_ref(), key.span(), text, found);
                find(value, text, found);
            }
        }
        _ => {}
    }
}

/// Finds the placeholders in `string`, which is at `span` of `text`.
fn find_in(string: &str, span: Range<usize>, text: &str, found: &mut Vec<Placeholder>) {
    let source = text.get(span.clone()).unwrap_or_default();
    for (_, part) in parts(string).into_iter().filter(|(kind, _)| *kind != Kind::Text) {
        // An escape in the string can hide it.
        let at = source.find(part).map_or(span.clone(), |start| {
            let start = span.start + start;
            start..start + part.len()
        });
        found.push(Placeholder { key: key_of(part).map(str::to_owned), at });
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Placeholder,
}

/// Splits `string` at its placeholders.
fn parts(string: &str) -> Vec<(Kind, &str)> {
    let mut parts = Vec::new();
    let mut rest = string;
    while let Some(start) = rest.find("${") {
        let length = rest[start..].find('}').map_or(rest.len() - start, |end| end + 1);
        parts.push((Kind::Text, &rest[..start]));
        parts.push((Kind::Placeholder, &rest[start..start + length]));
        rest = &rest[start + length..];
    }
    parts.push((Kind::Text, rest));
    parts
}

fn key_of(placeholder: &str) -> Option<&str> {
    placeholder.strip_prefix("${")?.strip_suffix('}')
}

/// Replaces the placeholders in `value` by the values of `choice`; unknown ones stay. Returns the
/// keys that are in a table twice then.
pub fn substitute<'a>(value: &mut DeValue<'a>, choice: &Choice<'a>) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    substitute_in(value, choice, &mut mistakes);
    mistakes
}

fn substitute_in<'a>(value: &mut DeValue<'a>, choice: &Choice<'a>, mistakes: &mut Vec<Mistake>) {
    match value {
        DeValue::String(string) => {
            let whole = key_of(string).and_then(|key| value_of(choice, key));
            *value = match whole {
                Some(whole) => whole.clone(),
                None => DeValue::String(replaced(string, choice).into()),
            };
        }
        DeValue::Array(values) => {
            let each = values.iter_mut();
            each.for_each(|value| substitute_in(value.get_mut(), choice, mistakes));
        }
        DeValue::Table(table) => {
            for (key, mut value) in std::mem::replace(table, DeTable::new()) {
                substitute_in(value.get_mut(), choice, mistakes);
                let name = replaced(key.get_ref(), choice);
                let first = table.get_key_value(name.as_str()).map(|(first, _)| first.span());
                if let Some(first) = first {
                    let twice = Mistake::new(format!("`{name}` is here twice")).at(key.span());
                    mistakes
                        .push(Mistake { other: Some(Box::new((first, "first here"))), ..twice });
                }
                table.insert(Spanned::new(key.span(), name.into()), value);
            }
        }
        _ => {}
    }
}

fn value_of<'c, 'a>(choice: &'c Choice<'a>, key: &str) -> Option<&'c DeValue<'a>> {
    choice.iter().find(|(known, _)| known == key).map(|(_, value)| value)
}

fn replaced(string: &str, choice: &Choice<'_>) -> String {
    let replace = |(kind, part)| match kind {
        Kind::Text => String::from(part),
        Kind::Placeholder => key_of(part)
            .and_then(|key| plain(value_of(choice, key)?))
            .unwrap_or_else(|| part.to_owned()),
    };
    parts(string).into_iter().map(replace).collect()
}

/// The suffix of the case's name: `[key=value,…]`, or empty without a matrix.
pub fn suffix(choice: &Choice<'_>) -> String {
    if choice.is_empty() {
        return String::new();
    }
    let pair = |(key, value)| format!("{key}={}", plain(value).unwrap_or_default());
    let pairs: Vec<String> = choice.iter().map(|(key, value)| pair((key, value))).collect();
    format!("[{}]", pairs.join(","))
}

/// A value as part of a text; none if it is not text, a whole number, true or false.
fn plain(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        DeValue::Integer(number) => {
            let value = i64::from_str_radix(number.as_str(), number.radix());
            Some(value.map_or_else(|_| number.to_string(), |value| value.to_string()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::tree;

    #[test]
    fn a_whole_string_becomes_the_value_and_a_part_its_text() {
        let mut tree = tree::parse("a = \"${n}\"\n\"b${n}\" = [\"x${n}y\", \"${m}\"]\n").unwrap();
        let choice = vec![("n".to_owned(), DeValue::parse("0x10").unwrap().into_inner())];
        assert!(substitute(tree.get_mut(), &choice).is_empty());
        let read: toml::Table = tree::read(tree).unwrap();
        assert_eq!(read, toml::from_str("a = 16\nb16 = [\"x16y\", \"${m}\"]\n").unwrap());
    }
}
