//! Colours for terminal output. [`say`](super::stdout::say) strips them if the output is not a
//! terminal, or if `NO_COLOR` is set.

use anstyle::AnsiColor;

/// The meaning of a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// All is well.
    Good,
    /// Needs attention.
    Care,
    /// Something is wrong.
    Bad,
}

/// Returns `word` in its colour, padded with spaces to `width` characters.
pub fn painted(word: &str, width: usize, paint: Paint) -> String {
    let style = match paint {
        Paint::Good => AnsiColor::Green.on_default(),
        Paint::Care => AnsiColor::Yellow.on_default(),
        Paint::Bad => AnsiColor::Red.on_default().bold(),
    };
    let spaces = " ".repeat(width.saturating_sub(word.chars().count()));
    format!("{style}{word}{style:#}{spaces}")
}

/// Returns `line` with its leading verdict coloured, if it has one.
pub fn verdict_first(line: &str) -> String {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    let paint = match word {
        "pass" => Paint::Good,
        "FAIL" | "BROKEN" => Paint::Bad,
        "ignored" | "differs" => Paint::Care,
        _ => return line.to_owned(),
    };
    format!("{} {rest}", painted(word, 0, paint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("pass    a  1 update")]
    #[case("FAIL    a")]
    #[case("        at step 3")]
    fn painting_only_adds_colours(#[case] line: &str) {
        let painted = verdict_first(line);
        assert_eq!(painted != line, !line.starts_with(' '));
        assert_eq!(anstream::adapter::strip_str(&painted).to_string(), line);
    }
}
