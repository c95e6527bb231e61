//! One error in a scenario file, and how it is shown: the source line, a caret, and what is accepted.

use std::fmt::{self, Display};
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::de;

use super::hint;

/// The width of notes, in columns.
const WIDTH: usize = 88;

/// An error at a place in a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistake {
    /// The bytes at fault; none until the place is known.
    pub at: Option<Range<usize>>,
    /// What is wrong.
    pub message: String,
    /// What to write instead, shown at the caret.
    pub label: String,
    /// What is accepted, or where the error occurs.
    pub notes: Vec<String>,
    /// Another place to show, and why.
    pub other: Option<Box<(Range<usize>, &'static str)>>,
}

impl Mistake {
    /// An error whose place is not known yet.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// Sets the place.
    pub fn at(self, span: Range<usize>) -> Self {
        Self { at: Some(span), ..self }
    }

    /// Sets the place unless it is known already.
    pub fn at_or_in(self, span: Range<usize>) -> Self {
        Self { at: self.at.or(Some(span)), ..self }
    }

    /// Sets what is shown at the caret.
    pub fn label(self, label: impl Into<String>) -> Self {
        Self { label: label.into(), ..self }
    }

    /// Adds a note.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// `word`, a key or value as `kind` says, is not one of `valid`.
    pub fn unknown(kind: &str, word: &str, valid: &[&str]) -> Self {
        let label = hint::label(word, valid).unwrap_or_default();
        let accepted = hint::accepted(valid, !label.is_empty());
        let mistake = Self::new(format!("unknown {kind} `{word}`")).label(label);
        match accepted {
            Some(accepted) => mistake.note(accepted),
            None => mistake,
        }
    }

    /// Renders it as a report on `text`, the contents of `file`.
    pub fn render(&self, file: &str, text: &str, renderer: &Renderer) -> String {
        let at = within(text, self.at.clone().unwrap_or(0..0));
        let mut primary = AnnotationKind::Primary.span(at);
        if !self.label.is_empty() {
            primary = primary.label(&*self.label);
        }
        let mut snippet = Snippet::source(text).path(file).annotation(primary);
        if let Some((span, why)) = self.other.as_deref() {
            let span = within(text, span.clone());
            snippet = snippet.annotation(AnnotationKind::Context.span(span).label(*why));
        }
        let notes = self.notes.iter().map(|note| Level::NOTE.message(folded(note)));
        let group = Group::with_title(Level::ERROR.primary_title(&*self.message)).element(snippet);
        renderer.render(&[group.elements(notes)])
    }
}

/// Limits `span` to `text` and to whole characters; only its first line is shown.
fn within(text: &str, span: Range<usize>) -> Range<usize> {
    let floor = |at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    let start = floor(span.start).unwrap_or(0);
    let end = floor(span.end).unwrap_or(start).max(start);
    let line = text[start..end].find('\n').map_or(end, |length| start + length);
    start..line
}

/// Breaks a note into lines.
fn folded(note: &str) -> String {
    let mut lines = String::new();
    let mut column = 0;
    for word in note.split(' ') {
        let length = word.chars().count();
        match column {
            0 => {}
            _ if column + 1 + length > WIDTH => {
                lines.push('\n');
                column = 0;
            }
            _ => {
                lines.push(' ');
                column += 1;
            }
        }
        lines.push_str(word);
        column += length;
    }
    lines
}

impl Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = if self.label.is_empty() { self.notes.as_slice() } else { &[] };
        let label = Some(&self.label).filter(|label| !label.is_empty());
        f.write_str(&self.message)?;
        label.into_iter().chain(more).try_for_each(|more| write!(f, "; {more}"))
    }
}

impl std::error::Error for Mistake {}

impl de::Error for Mistake {
    fn custom<T: Display>(message: T) -> Self {
        let message = message.to_string();
        match message.split_once(": expected ") {
            Some((what, expected)) => Self::new(what).label(format!("expected {expected}")),
            None => Self::new(message),
        }
    }

    fn unknown_field(key: &str, valid: &'static [&'static str]) -> Self {
        Self::unknown("key", key, valid)
    }

    fn unknown_variant(value: &str, valid: &'static [&'static str]) -> Self {
        Self::unknown("value", value, valid)
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(format!("the key `{key}` is missing"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_outside_the_text_or_in_a_character_is_shown_at_the_nearest_one() {
        for (text, span) in [("", 0..0), ("", 3..9), ("é = 1\n", 1..3), ("a\nb", 0..3)] {
            let shown = Mistake::new("wrong").at(span).render("f.toml", text, &Renderer::plain());
            assert!(shown.contains("--> f.toml:1:1"), "{shown}");
        }
    }

    #[test]
    fn long_notes_are_folded_between_words() {
        let folded = folded(&"word ".repeat(40));
        assert!(folded.lines().count() == 3 && folded.lines().all(|line| line.len() <= WIDTH));
    }
}
