//! Errors in scenario files, shown with the lines at fault.

use std::fmt;
use std::path::PathBuf;

use annotate_snippets::Renderer;

use super::mistake::Mistake;

/// An error in scenarios.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The text is not a valid scenario.
    #[error(transparent)]
    Invalid(Mistakes),
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
    /// Errors in several files.
    #[error("{}", reports(.0, &Renderer::plain()))]
    Several(Vec<ScenarioError>),
}

/// What is wrong in one file.
#[derive(Debug)]
pub struct Mistakes {
    file: String,
    text: String,
    all: Vec<Mistake>,
}

impl ScenarioError {
    /// What is wrong in `text`, the contents of `file`.
    pub fn mistakes(file: &str, text: &str, mut all: Vec<Mistake>) -> Self {
        all.sort_by_key(|mistake| mistake.at.as_ref().map_or(0, |at| at.start));
        Self::Invalid(Mistakes { file: file.to_owned(), text: text.to_owned(), all })
    }

    /// An error in the meaning of the scenario.
    pub fn sense(file: &str, message: impl Into<String>) -> Self {
        Self::Sense { file: file.to_owned(), message: message.into() }
    }

    /// All of `errors` as one; none if there are none.
    pub fn all(mut errors: Vec<Self>) -> Option<Self> {
        match errors.len() {
            0 | 1 => errors.pop(),
            _ => Some(Self::Several(errors)),
        }
    }

    /// All errors for a terminal, with a summary as the first line.
    pub fn styled(&self) -> String {
        let (errors, files) = (self.count(), self.files());
        let files = if files == 1 { "one file".to_owned() } else { format!("{files} files") };
        match self {
            Self::Invalid(_) | Self::Several(_) if errors > 1 => {
                format!("{errors} errors in {files}\n\n{}", self.render(&Renderer::styled()))
            }
            Self::Invalid(_) => format!("invalid scenario\n\n{}", self.render(&Renderer::styled())),
            _ => self.to_string(),
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::Invalid(mistakes) => mistakes.all.len(),
            Self::Several(errors) => errors.iter().map(Self::count).sum(),
            Self::Sense { .. } | Self::Read { .. } => 1,
        }
    }

    fn files(&self) -> usize {
        match self {
            Self::Several(errors) => errors.iter().map(Self::files).sum(),
            _ => 1,
        }
    }

    fn render(&self, renderer: &Renderer) -> String {
        match self {
            Self::Invalid(mistakes) => mistakes.render(renderer),
            Self::Several(errors) => reports(errors, renderer),
            error => format!("error: {error}"),
        }
    }
}

fn reports(errors: &[ScenarioError], renderer: &Renderer) -> String {
    let reports: Vec<String> = errors.iter().map(|error| error.render(renderer)).collect();
    reports.join("\n\n")
}

impl Mistakes {
    fn render(&self, renderer: &Renderer) -> String {
        let report = |mistake: &Mistake| mistake.render(&self.file, &self.text, renderer);
        self.all.iter().map(report).collect::<Vec<_>>().join("\n\n")
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(&Renderer::plain()))
    }
}

impl std::error::Error for Mistakes {}
