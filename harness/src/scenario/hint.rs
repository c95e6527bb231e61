//! Suggests what was meant by an unknown key or value.

/// A longer list of what is accepted is not shown if one of it is near.
const SHORT: usize = 20;

/// Keys and values of earlier versions, and what replaces them, which depends on the place. Those that
/// only changed from `snake_case` to `kebab-case` are found by [`nearest`].
const RENAMED: [(&str, &str); 8] = [
    ("deadline_ms", "time-limit-ms"),
    ("deadline_ms", "deadline-ms"),
    ("repeat", "times"),
    ("updates", "times"),
    ("kept", "any"),
    ("undone", "not-completed"),
    ("start", "init-sipi"),
    ("storm", "soak"),
];

/// What to write instead of `word`, if it was renamed to one of `valid` or one of them is near.
pub fn label(word: &str, valid: &[&str]) -> Option<String> {
    let is_here = |(old, new): &&(&str, &str)| *old == word && valid.contains(new);
    match RENAMED.iter().find(is_here) {
        Some((old @ "storm", new)) => {
            Some(format!("`{old}` is now `{new}` with `within-ms = 5, setbacks = \"none\"`"))
        }
        Some((old, new)) => Some(format!("`{old}` is now `{new}`")),
        None => nearest(word, valid).map(|near| format!("did you mean `{near}`?")),
    }
}

/// Lists `valid`, unless the list is long and there is a `hint` already.
pub fn accepted(valid: &[&str], hint: bool) -> Option<String> {
    let quoted: Vec<String> = valid.iter().map(|valid| format!("`{valid}`")).collect();
    match quoted.as_slice() {
        [] => Some("nothing is accepted here".to_owned()),
        all if hint && all.len() > SHORT => None,
        all => Some(format!("accepted: {}", all.join(", "))),
    }
}

/// The nearest of `valid`, if one is near.
pub fn nearest<'a>(word: &str, valid: &[&'a str]) -> Option<&'a str> {
    let distances = valid.iter().map(|valid| (strsim::damerau_levenshtein(word, valid), *valid));
    let near = distances.filter(|(distance, valid)| *distance <= valid.len() / 2);
    near.min().map(|(_, valid)| valid)
}
