//! Colours. They reach a terminal only: [`say`](super::stdout::say) takes them out of all else, and
//! where `NO_COLOR` is set.

use anstyle::AnsiColor;

/// What a word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paint {
    /// All is well.
    Good,
    /// Look at it.
    Care,
    /// Something is wrong.
    Bad,
}

/// `word` in its colour, and spaces up to `width` characters.
pub fn painted(word: &str, width: usize, paint: Paint) -> String {
    let style = match paint {
        Paint::Good => AnsiColor::Green.on_default(),
        Paint::Care => AnsiColor::Yellow.on_default(),
        Paint::Bad => AnsiColor::Red.on_default().bold(),
    };
    let spaces = " ".repeat(width.saturating_sub(word.chars().count()));
    format!("{style}{word}{style:#}{spaces}")
}

/// `line` with the verdict that it begins with in its colour.
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
    fn a_line_without_its_colours_is_as_it_was(#[case] line: &str) {
        let painted = verdict_first(line);
        assert_eq!(painted != line, !line.starts_with(' '));
        assert_eq!(anstream::adapter::strip_str(&painted).to_string(), line);
    }
}
