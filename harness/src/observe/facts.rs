//! Named values, and how they differ.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Values that an audit read, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts(BTreeMap<String, String>);

/// A value that differs from before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The name.
    pub item: String,
    /// The value before; `None`: it was not there.
    pub was: Option<String>,
    /// The value after; `None`: it is no longer there.
    pub is: Option<String>,
}

impl Facts {
    /// Adds a value, and replaces an earlier one of the same name.
    pub fn insert(&mut self, item: impl Into<String>, value: impl fmt::Display) {
        self.0.insert(item.into(), value.to_string());
    }

    /// The value of `item`.
    pub fn get(&self, item: &str) -> Option<&str> {
        self.0.get(item).map(String::as_str)
    }

    /// All facts, in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(item, value)| (item.as_str(), value.as_str()))
    }

    /// Returns true if nothing was read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Replaces all facts whose names `fits` accepts with `new`.
    pub fn replace(&mut self, fits: impl Fn(&str) -> bool, new: Self) {
        self.0.retain(|item, _| !fits(item));
        self.0.extend(new.0);
    }

    /// Returns what differs in `after`.
    pub fn changes(&self, after: &Self) -> Vec<Change> {
        let items: BTreeSet<_> = self.0.keys().chain(after.0.keys()).collect();
        let change = |item: &String| {
            let (was, is) = (self.0.get(item).cloned(), after.0.get(item).cloned());
            (was != is).then(|| Change { item: item.clone(), was, is })
        };
        items.into_iter().filter_map(change).collect()
    }
}

impl FromIterator<(String, String)> for Facts {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(facts: I) -> Self {
        Self(facts.into_iter().collect())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tell = |value: &Option<String>| match value.as_deref() {
            None => "not there".to_owned(),
            Some("") => "empty".to_owned(),
            Some(value) => value.to_owned(),
        };
        write!(f, "{} was {}, is {}", self.item, tell(&self.was), tell(&self.is))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_new_missing_and_changed_facts() {
        let facts = |all: &[(&str, &str)]| -> Facts {
            all.iter().map(|(item, value)| ((*item).to_owned(), (*value).to_owned())).collect()
        };
        let before = facts(&[("a", "1"), ("b", ""), ("same", "0")]);
        let after = facts(&[("a", "2"), ("c", "3"), ("same", "0")]);
        let lines: Vec<_> = before.changes(&after).iter().map(Change::to_string).collect();
        assert_eq!(lines, ["a was 1, is 2", "b was empty, is not there", "c was not there, is 3"]);
    }
}
