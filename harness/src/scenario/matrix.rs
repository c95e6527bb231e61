//! Expands the `[matrix]` of a scenario file to one case for each combination of values.
//!
//! A value replaces `"${key}"` in the text, so any key of a scenario can vary, and the typed parser
//! sees every expanded case with the author's line numbers.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::{Spanned, Table, Value};

use super::ScenarioError;

/// One combination of values: pairs of key and value, sorted by key.
pub type Choice = Vec<(String, Value)>;

/// The values, and their positions in the file.
#[derive(Deserialize)]
struct Matrix {
    matrix: BTreeMap<String, Spanned<Value>>,
}

/// All combinations of the matrix in `text`; one empty choice if there is no matrix.
pub fn choices(file: &str, text: &str) -> Result<Vec<Choice>, ScenarioError> {
    let table: Table = toml::from_str(text).map_err(|e| ScenarioError::syntax(file, text, &e))?;
    if !table.contains_key("matrix") {
        return Ok(vec![Vec::new()]);
    }
    let Matrix { matrix } = toml::from_str(text).map_err(|_| {
        ScenarioError::sense(file, "`matrix` must be a table of lists: key = [value, …]")
    })?;
    let mut all = vec![Choice::new()];
    for (key, values) in &matrix {
        let wrong = |message| {
            Err(ScenarioError::at(file, text, values.span().start, message, String::new()))
        };
        let Some(values) = values.get_ref().as_array().filter(|values| !values.is_empty()) else {
            return wrong(format!("`matrix.{key}` must be a list of values"));
        };
        if let Some(bad) = values.iter().find(|v| !(v.is_str() || v.is_integer() || v.is_bool())) {
            return wrong(format!("`matrix.{key}`: {bad} is not a string, integer or boolean"));
        }
        if !text.contains(&format!("${{{key}}}")) {
            return wrong(format!("`matrix.{key}` is unused; write \"${{{key}}}\" to use it"));
        }
        all = all
            .iter()
            .flat_map(|choice| {
                values.iter().map(|value| {
                    let mut choice = choice.clone();
                    choice.push((key.clone(), value.clone()));
                    choice
                })
            })
            .collect();
    }
    Ok(all)
}

/// Replaces the placeholders in `text` with the values of `choice`.
pub fn substitute(file: &str, text: &str, choice: &Choice) -> Result<String, ScenarioError> {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while let Some(found) = text[at..].find("${") {
        let start = at + found;
        let line_start = text[..start].rfind('\n').map_or(0, |n| n + 1);
        let Some(length) = text[start..].find('}') else { break };
        let end = start + length + 1;
        if text[line_start..start].trim_start().starts_with('#') {
            out.push_str(&text[at..end]);
            at = end;
            continue;
        }
        let key = &text[start + 2..end - 1];
        let Some((_, value)) = choice.iter().find(|(k, _)| k == key) else {
            let message = format!("`${{{key}}}` is not in [matrix]");
            return Err(ScenarioError::at(file, text, start, message, String::new()));
        };
        let whole = text[..start].ends_with('"') && text[end..].starts_with('"');
        if whole && !value.is_str() {
            out.push_str(&text[at..start - 1]);
            out.push_str(&value.to_string());
            at = end + 1;
        } else {
            out.push_str(&text[at..start]);
            out.push_str(&plain(value));
            at = end;
        }
    }
    out.push_str(&text[at..]);
    Ok(out)
}

/// The suffix of the case's name: `[key=value,…]`, or empty without a matrix.
pub fn suffix(choice: &Choice) -> String {
    if choice.is_empty() {
        return String::new();
    }
    let pairs: Vec<String> = choice.iter().map(|(k, v)| format!("{k}={}", plain(v))).collect();
    format!("[{}]", pairs.join(","))
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
