//! Parts of the interface that no scenario drives, and what tests them instead:
//! `scenarios/not-driven.toml`.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use regex::Regex;
use serde::Deserialize;

use crate::scenario::{ScenarioError, tree};

/// Contents of the file at build time.
const EMBEDDED: &str = include_str!("../../../scenarios/not-driven.toml");
const NAME: &str = "not-driven.toml";

/// An entry: parts of the interface that no scenario drives.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    /// A regular expression that matches their full names.
    item: String,
    /// Some hosts, or some runs, do drive them.
    #[serde(default)]
    rare: bool,
    /// Why, and what tests them.
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    not_driven: Vec<Listed>,
}

/// The list of entries.
#[derive(Debug)]
pub struct NotDriven(Vec<(Listed, Regex)>);

impl NotDriven {
    /// Returns the list in the file.
    pub fn embedded() -> &'static Self {
        static LIST: OnceLock<NotDriven> = OnceLock::new();
        // A test parses it, so an error is found before release.
        LIST.get_or_init(|| Self::parse(EMBEDDED).expect("not-driven.toml is valid"))
    }

    fn parse(text: &str) -> Result<Self, ScenarioError> {
        let file: File = tree::from_str(NAME, text)?;
        let with_pattern = |listed: Listed| {
            if listed.reason.trim().is_empty() {
                return Err(ScenarioError::sense(NAME, format!("{} has no reason", listed.item)));
            }
            let pattern = Regex::new(&format!("^(?:{})$", listed.item)).map_err(|error| {
                ScenarioError::sense(NAME, format!("{:?}: {error}", listed.item))
            })?;
            Ok((listed, pattern))
        };
        Ok(Self(file.not_driven.into_iter().map(with_pattern).collect::<Result<_, _>>()?))
    }

    /// Returns a line for each part that is neither `driven` nor listed, and for each stale entry.
    pub fn complaints(&self, all: &BTreeSet<String>, driven: &BTreeSet<String>) -> Vec<String> {
        let left: Vec<&String> = all.difference(driven).collect();
        let listed = |item: &&&String| self.0.iter().any(|(_, pattern)| pattern.is_match(item));
        let unlisted = left.iter().filter(|item| !listed(item));
        let unlisted = unlisted.map(|item| {
            format!("no scenario drives {item}: write one, or state in {NAME} what tests it")
        });
        let stale = self.0.iter().filter(|(listed, pattern)| {
            !listed.rare && !left.iter().any(|item| pattern.is_match(item))
        });
        let stale = stale.map(|(listed, _)| {
            format!("{NAME}: {:?} is stale: it matches nothing undriven", listed.item)
        });
        unlisted.chain(stale).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[test]
    fn the_embedded_list_is_valid() {
        NotDriven::parse(EMBEDDED).unwrap();
    }

    #[rstest]
    #[case("", &["a", "b"], &[])]
    #[case("", &["a"], &["no scenario drives b: write one, or state in not-driven.toml what tests it"])]
    #[case("b", &["a"], &[])]
    #[case("[b]", &["a"], &[])]
    #[case("b", &["a", "b"], &["not-driven.toml: \"b\" is stale: it matches nothing undriven"])]
    fn undriven_parts_must_be_listed_and_entries_must_match(
        #[case] item: &str,
        #[case] driven: &[&str],
        #[case] told: &[&str],
    ) {
        let text = match item {
            "" => String::new(),
            item => format!("[[not_driven]]\nitem = '{item}'\nreason = 'r'\n"),
        };
        let set = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect();
        let list = NotDriven::parse(&text).unwrap();
        assert_eq!(list.complaints(&set(&["a", "b"]), &set(driven)), told);
    }

    #[test]
    fn rejects_an_entry_without_a_reason() {
        let error = NotDriven::parse("[[not_driven]]\nitem = 'a'\nreason = ' '\n").unwrap_err();
        assert!(error.to_string().contains("has no reason"), "{error}");
    }
}
