//! Errors in scenario files, with their place and a hint how to fix them.

use std::path::PathBuf;

/// An error in a scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The text is not a valid scenario.
    #[error("{file}:{line}:{column}: {message}{hint}")]
    Syntax {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        message: String,
        /// The nearest valid key, or empty if none is near.
        hint: String,
    },
    /// The scenario is well-formed but makes no sense.
    #[error("{file}: {message}")]
    Sense {
        /// The file, and the case if the error is in one.
        file: String,
        /// What is wrong.
        message: String,
    },
    /// The file cannot be read.
    #[error("cannot read scenario {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl ScenarioError {
    /// Converts an error of the TOML parser in `text`.
    pub fn syntax(file: &str, text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().map_or(0, |span| span.start);
        let message = error.message().replace('\n', "; ");
        let hint = renamed(&message)
            .or_else(|| nearest(&message).map(|key| format!("; did you mean `{key}`?")));
        Self::at(file, text, at, message, hint.unwrap_or_default())
    }

    /// An error at byte `at` of `text`.
    pub fn at(file: &str, text: &str, at: usize, message: String, hint: String) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Self::Syntax { file: file.to_owned(), line, column, message, hint }
    }

    /// An error in the meaning of the scenario.
    pub fn sense(file: &str, message: impl Into<String>) -> Self {
        Self::Sense { file: file.to_owned(), message: message.into() }
    }
}

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

/// Names what replaces the unknown key or value that `message` is about, if it was renamed.
fn renamed(message: &str) -> Option<String> {
    let mut quoted = message.strip_prefix("unknown ")?.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    let valid: Vec<&str> = quoted.collect();
    let is_here = |(old, new): &&(&str, &str)| *old == unknown && valid.contains(new);
    let (old, new) = RENAMED.iter().find(is_here)?;
    let with = match *old {
        "storm" => " with `within-ms = 5, setbacks = \"none\"`",
        _ => "",
    };
    Some(format!("; `{old}` is now `{new}`{with}"))
}

/// Finds the valid key nearest to the unknown one; both come from serde's message:
/// unknown field `x`, expected one of `a`, `b`.
fn nearest(message: &str) -> Option<String> {
    if !message.starts_with("unknown") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted.next()?;
    quoted
        .map(|valid| (strsim::damerau_levenshtein(unknown, valid), valid))
        .filter(|(distance, valid)| *distance <= valid.len() / 2)
        .min()
        .map(|(_, valid)| valid.to_owned())
}
