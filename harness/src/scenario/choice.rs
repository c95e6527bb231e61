//! Names for the cases of one scenario in a table, by the matrix values that make a difference.

use std::collections::{BTreeMap, BTreeSet};

/// One value for each key of a matrix.
pub type Choice = BTreeMap<String, String>;

/// Splits the name of a case into its scenario and its choice.
pub fn split(name: &str) -> (String, Choice) {
    let (base, pairs) = pairs(name);
    let choice = pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
    (base.to_owned(), choice.collect())
}

/// Splits `theme/scenario[key=value,…]`.
fn pairs(name: &str) -> (&str, Vec<(&str, &str)>) {
    let Some((base, rest)) = name.split_once('[') else { return (name, Vec::new()) };
    let pairs = rest.trim_end_matches(']').split(',').filter_map(|pair| pair.split_once('='));
    (base, pairs.collect())
}

/// True if `told`, a scenario with the values that matter, covers this choice.
pub fn holds_for(told: &str, scenario: &str, choice: &Choice) -> bool {
    let (base, values) = pairs(told);
    let holds = |key: &str| {
        let mut wanted = values.iter().filter(|(k, _)| *k == key).map(|(_, value)| *value);
        wanted.any(|value| choice.get(key).is_some_and(|v| v == value))
    };
    base == scenario && values.iter().all(|(key, _)| holds(key))
}

/// Returns `scenario` with the values in which `here` differs from `everywhere`.
pub fn told<'a>(
    scenario: &str,
    here: impl IntoIterator<Item = &'a Choice>,
    everywhere: impl IntoIterator<Item = &'a Choice>,
) -> String {
    let matters: Vec<String> = values(here)
        .into_iter()
        .zip(values(everywhere))
        .filter(|((_, here), (_, everywhere))| here != everywhere)
        .flat_map(|((key, here), _)| here.into_iter().map(move |value| format!("{key}={value}")))
        .collect();
    match matters.is_empty() {
        true => scenario.to_owned(),
        false => format!("{scenario}[{}]", matters.join(",")),
    }
}

/// Returns the values that occur, by key.
fn values<'a>(
    choices: impl IntoIterator<Item = &'a Choice>,
) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let mut values: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (key, value) in choices.into_iter().flatten() {
        values.entry(key).or_default().insert(value);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_covers_the_cases_whose_values_it_names() {
        let about = |case: &str| {
            let (scenario, choice) = split(case);
            holds_for("a/b[cpus=2,cpus=4]", &scenario, &choice)
        };
        assert!(about("a/b[cpus=2,guest=running]") && about("a/b[cpus=4]"));
        assert!(!about("a/b[cpus=1]") && !about("a/c[cpus=2]") && !about("a/b"));
    }

    #[test]
    fn only_values_that_matter_are_named() {
        let [one, two, four] =
            ["a/b[cpus=1,p=x]", "a/b[cpus=2,p=x]", "a/b[cpus=4,p=x]"].map(|name| split(name).1);
        assert_eq!(told("a/b", [&one, &two], [&one, &two, &four]), "a/b[cpus=1,cpus=2]");
        assert_eq!(told("a/b", [&one, &two], [&one, &two]), "a/b");
    }
}
