//! Shows how two lists differ.

use similar::{ChangeTag, TextDiff};

/// Unchanged lines shown on each side of a change.
const CONTEXT: usize = 2;
/// The most characters that are shown of an unchanged line.
const WIDTH: usize = 60;
/// The most lines that a difference has.
const MOST: usize = 24;

/// How a list differs from another.
#[derive(Debug)]
pub struct Difference {
    /// What only the first list has.
    removed: Vec<String>,
    /// What only the second list has.
    added: Vec<String>,
    /// What both have, but in another order.
    moved: Vec<String>,
    lines: Vec<String>,
}

impl Difference {
    /// Compares two lists.
    pub fn of(old: &[impl AsRef<str>], new: &[impl AsRef<str>]) -> Self {
        let (old, new) = (text(old), text(new));
        let diff = TextDiff::from_lines(&old, &new);
        let only = |tag: ChangeTag| -> Vec<String> {
            let changes = diff.iter_all_changes().filter(|change| change.tag() == tag);
            changes.map(|change| change.value().trim_end().to_owned()).collect()
        };
        let mut removed = only(ChangeTag::Delete);
        let mut added = only(ChangeTag::Insert);
        let mut moved = Vec::new();
        removed.retain(|item| match added.iter().position(|other| other == item) {
            Some(at) => {
                moved.push(added.remove(at));
                false
            }
            None => true,
        });
        let mut unified = diff.unified_diff();
        let mut lines = Vec::new();
        for hunk in unified.context_radius(CONTEXT).iter_hunks() {
            if !lines.is_empty() {
                lines.push("  …".to_owned());
            }
            lines.extend(hunk.iter_changes().map(|change| {
                let value = change.value().trim_end();
                match change.tag() {
                    ChangeTag::Equal => format!("  {}", shortened(value)),
                    tag => format!("{tag} {value}"),
                }
            }));
        }
        Self { removed, added, moved, lines }
    }

    /// The number of items that differ.
    pub fn count(&self) -> usize {
        self.removed.len() + self.added.len() + self.moved.len()
    }

    /// Names what differs, in one line.
    pub fn summary(&self) -> String {
        let all = [("missing", &self.removed), ("unexpected", &self.added), ("moved", &self.moved)];
        let named = all.iter().filter(|(_, items)| !items.is_empty());
        let named: Vec<String> =
            named.map(|(what, items)| format!("{what} {}", items.join(", "))).collect();
        named.join("; ")
    }

    /// The difference in lines that begin with `-` or `+`, with some of what is equal around them.
    pub fn unified(&self) -> String {
        let mut lines = self.lines.clone();
        let more = lines.len().saturating_sub(MOST);
        lines.truncate(MOST);
        if more > 0 {
            lines.push(format!("  … and {more} more lines"));
        }
        lines.join("\n")
    }
}

/// Shortens a line that did not change.
fn shortened(line: &str) -> String {
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

fn text(items: &[impl AsRef<str>]) -> String {
    // An item with a newline would count as several.
    items.iter().map(|item| item.as_ref().replace('\n', " ") + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("a b c", "a c", "missing b", "  a\n- b\n  c")]
    #[case("a b c", "a x c", "missing b; unexpected x", "  a\n- b\n+ x\n  c")]
    #[case("a b c", "b c a", "moved a", "- a\n  b\n  c\n+ a")]
    #[case("a 1 2 3 4 5 b", "1 2 3 4 5", "missing a, b", "- a\n  1\n  2\n  …\n  4\n  5\n- b")]
    #[case("", "a", "unexpected a", "+ a")]
    fn shows_only_what_differs(
        #[case] old: &str,
        #[case] new: &str,
        #[case] summary: &str,
        #[case] unified: &str,
    ) {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let difference = Difference::of(&words(old), &words(new));
        assert_eq!(
            (difference.summary().as_str(), difference.unified().as_str()),
            (summary, unified)
        );
        assert_eq!(Difference::of(&words(old), &words(old)).count(), 0);
    }

    #[test]
    fn length_is_bounded() {
        let all: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let unified = Difference::of(&all, &[""; 0]).unified();
        assert_eq!(unified.lines().count(), MOST + 1);
        assert!(unified.ends_with("… and 76 more lines"), "{unified}");
    }
}
