//! Scenario files as trees whose nodes know their place in the text.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ScenarioError;
use super::deserialize::Node;
use super::mistake::Mistake;

/// A file, or a case of it.
pub type Tree<'a> = Spanned<DeValue<'a>>;

/// Reads a `T` from `text`, the contents of `file`; reports all independent errors.
pub fn from_str<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, ScenarioError> {
    let read = parse(text).and_then(read);
    read.map_err(|mistakes| ScenarioError::mistakes(file, text, mistakes))
}

/// Parses `text`.
pub fn parse(text: &str) -> Result<Tree<'_>, Vec<Mistake>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut mistakes: Vec<Mistake> = Vec::new();
    for error in errors {
        let at = error.span().unwrap_or(text.len()..text.len());
        // Later errors in a line follow from the first, as do those at the end of an unfinished file.
        let ends_there = |mistake: &Mistake| {
            mistake.at.as_ref().is_some_and(|first| line(text, first) == line(text, &at))
        };
        if !mistakes.iter().any(ends_there) {
            mistakes.push(syntax(error.message()).at(at));
        }
    }
    let span = 0..0;
    match mistakes.is_empty() {
        true => Ok(Spanned::new(span, DeValue::Table(table.into_inner()))),
        false => Err(mistakes),
    }
}

fn syntax(message: &str) -> Mistake {
    match message.split_once(", expected ") {
        Some((what, expected)) => {
            Mistake::new(format!("invalid TOML: {what}")).label(format!("expected {expected}"))
        }
        None => Mistake::new(format!("invalid TOML: {message}")),
    }
}

fn line(text: &str, span: &Range<usize>) -> usize {
    text.as_bytes().iter().take(span.start).filter(|byte| **byte == b'\n').count()
}

/// Reads a `T` from `tree`, whose place is `0..0`; after an error, cuts out what is wrong and tries
/// again, so that all independent errors are found.
pub fn read<T: DeserializeOwned>(mut tree: Tree<'_>) -> Result<T, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut cut_from = Vec::new();
    loop {
        let mistake = match T::deserialize(Node::root(&tree)) {
            Ok(read) if mistakes.is_empty() => return Ok(read),
            Ok(_) => return Err(mistakes),
            Err(mistake) => mistake,
        };
        let at = mistake.at.clone().unwrap_or(0..0);
        // What is wrong with a table from which something was cut may follow from that.
        if !cut_from.contains(&at) {
            mistakes.push(mistake);
        }
        let whole = tree.span();
        match cut(tree.get_mut(), &whole, &at) {
            Some(from) => cut_from.push(from),
            None => return Err(mistakes),
        }
    }
}

/// Removes the entry or element at `at` from the first table or list in `value` that has it, and
/// returns the place of that table or list.
fn cut(value: &mut DeValue<'_>, place: &Range<usize>, at: &Range<usize>) -> Option<Range<usize>> {
    match value {
        DeValue::Table(table) => {
            let found = table.iter().find(|(key, value)| key.span() == *at || value.span() == *at);
            if let Some(key) = found.map(|(key, _)| key.get_ref().clone()) {
                table.remove(&*key);
                return Some(place.clone());
            }
            table.iter_mut().find_map(|(_, value)| {
                let span = value.span();
                cut(value.get_mut(), &span, at)
            })
        }
        DeValue::Array(values) => {
            if let Some(index) = values.iter().position(|value| value.span() == *at) {
                let left = values.iter().enumerate().filter(|(other, _)| *other != index);
                *values = left.map(|(_, value)| value.clone()).collect();
                return Some(place.clone());
            }
            values.iter_mut().find_map(|value| {
                let span = value.span();
                cut(value.get_mut(), &span, at)
            })
        }
        _ => None,
    }
}

/// A part of a path to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The value of a key.
    Key(&'static str),
    /// The value of the only key.
    Only,
    /// An element, from 0.
    Element(usize),
}

/// Finds the place of the value at `path`, or else of the last value before it that exists.
pub fn place(tree: &Tree<'_>, path: &[Part]) -> Range<usize> {
    let mut at = tree;
    for part in path {
        let next = match (at.get_ref(), part) {
            (DeValue::Table(table), Part::Key(key)) => table.get(*key),
            (DeValue::Table(table), Part::Only) if table.len() == 1 => table.values().next(),
            (DeValue::Array(values), Part::Element(index)) => values.get(*index),
            _ => None,
        };
        match next {
            Some(next) => at = next,
            None => break,
        }
    }
    at.span()
}
