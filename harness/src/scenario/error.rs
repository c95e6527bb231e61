//! Errors of scenario files, told so that they can be mended.

use std::path::PathBuf;

/// What is wrong with a scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The text is no valid scenario.
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
        /// The nearest valid key, where one is near.
        hint: String,
    },
    /// It is well-formed and makes no sense.
    #[error("{file}: {message}")]
    Sense {
        /// The file, and the case where it matters.
        file: String,
        /// What is wrong.
        message: String,
    },
    /// The file cannot be read.
    #[error("cannot read scenario {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl ScenarioError {
    /// From an error of the TOML reader about `text`.
    pub fn syntax(file: &str, text: &str, error: &toml::de::Error) -> Self {
        let at = error.span().map_or(0, |span| span.start);
        let message = error.message().replace('\n', "; ");
        let hint = nearest(&message).map(|key| format!("; did you mean `{key}`?"));
        Self::at(file, text, at, message, hint.unwrap_or_default())
    }

    /// About the byte `at` of `text`.
    pub fn at(file: &str, text: &str, at: usize, message: String, hint: String) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        Self::Syntax { file: file.to_owned(), line, column, message, hint }
    }

    /// About what the scenario means.
    pub fn sense(file: &str, message: impl Into<String>) -> Self {
        Self::Sense { file: file.to_owned(), message: message.into() }
    }
}

/// The valid key nearest to the unknown one, both taken from serde's message:
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
