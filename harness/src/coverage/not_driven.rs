//! What no scenario drives, and what tests it instead: `scenarios/not-driven.toml`.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use regex::Regex;
use serde::Deserialize;

use crate::scenario::ScenarioError;

/// The file, as it was when this binary was built.
const EMBEDDED: &str = include_str!("../../../scenarios/not-driven.toml");
const NAME: &str = "not-driven.toml";

/// Parts of the interface that no scenario drives.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    /// A regular expression that fits all of their names.
    item: String,
    /// Not every host, or not every run, leaves them out.
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

/// The list.
#[derive(Debug)]
pub struct NotDriven(Vec<(Listed, Regex)>);

impl NotDriven {
    /// That of the file.
    pub fn embedded() -> &'static Self {
        static LIST: OnceLock<NotDriven> = OnceLock::new();
        // A test parses it, so that this is told when it is built.
        LIST.get_or_init(|| Self::parse(EMBEDDED).expect("not-driven.toml is valid"))
    }

    fn parse(text: &str) -> Result<Self, ScenarioError> {
        let file: File = toml::from_str(text).map_err(|e| ScenarioError::syntax(NAME, text, &e))?;
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

    /// What is neither `driven` nor listed, and entries that fit nothing that is left out.
    pub fn complaints(&self, all: &BTreeSet<String>, driven: &BTreeSet<String>) -> Vec<String> {
        let left: Vec<&String> = all.difference(driven).collect();
        let listed = |item: &&&String| self.0.iter().any(|(_, pattern)| pattern.is_match(item));
        let unlisted = left.iter().filter(|item| !listed(item));
        let unlisted = unlisted.map(|item| {
            format!("no scenario drives {item}: write one, or say in {NAME} what tests it")
        });
        let stale = self.0.iter().filter(|(listed, pattern)| {
            !listed.rare && !left.iter().any(|item| pattern.is_match(item))
        });
        let stale = stale.map(|(listed, _)| {
            format!("{NAME}: {:?} fits nothing that no scenario drives", listed.item)
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
    #[case("", &["a"], &["no scenario drives b: write one, or say in not-driven.toml what tests it"])]
    #[case("b", &["a"], &[])]
    #[case("[b]", &["a"], &[])]
    #[case("b", &["a", "b"], &["not-driven.toml: \"b\" fits nothing that no scenario drives"])]
    fn what_is_left_out_needs_a_reason(
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
    fn an_entry_without_a_reason_is_none() {
        let error = NotDriven::parse("[[not_driven]]\nitem = 'a'\nreason = ' '\n").unwrap_err();
        assert!(error.to_string().contains("has no reason"), "{error}");
    }
}
