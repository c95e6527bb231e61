//! `[matrix]`: one file, many cases.
//!
//! A value is put into the text wherever `"${key}"` stands, so any key of a scenario can vary and
//! the typed reader sees every expanded case, in lines as the author wrote them.

use toml::{Table, Value};

use super::ScenarioError;

/// One choice of values: key and value, in order of key.
pub type Choice = Vec<(String, Value)>;

/// All combinations of the matrix in `text`; one empty choice where there is no matrix.
pub fn choices(file: &str, text: &str) -> Result<Vec<Choice>, ScenarioError> {
    let table: Table = toml::from_str(text).map_err(|e| ScenarioError::syntax(file, text, &e))?;
    let Some(matrix) = table.get("matrix") else { return Ok(vec![Vec::new()]) };
    let Value::Table(matrix) = matrix else {
        return Err(ScenarioError::sense(file, "`matrix` must be a table of lists"));
    };
    let mut all = vec![Choice::new()];
    for (key, values) in matrix {
        let values = values.as_array().filter(|values| !values.is_empty()).ok_or_else(|| {
            ScenarioError::sense(file, format!("`matrix.{key}` must be a list of values"))
        })?;
        if let Some(bad) = values.iter().find(|v| !(v.is_str() || v.is_integer() || v.is_bool())) {
            let message = format!("`matrix.{key}`: {bad} is no string, number or boolean");
            return Err(ScenarioError::sense(file, message));
        }
        if !text.contains(&format!("${{{key}}}")) {
            let message = format!("`matrix.{key}` is used nowhere; write \"${{{key}}}\"");
            return Err(ScenarioError::sense(file, message));
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

/// `text` with the values of `choice` in place.
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

/// `[key=value,…]`, or nothing.
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
