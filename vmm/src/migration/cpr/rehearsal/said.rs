//! What a command has written to stderr, truncated to what an error can quote.

/// How many bytes of stderr are kept, of its beginning and of its end each.
const KEPT: usize = 2048;
/// How many characters an error quotes of each.
const QUOTED: usize = 150;

/// The beginning and the end of stderr: programs report their error first or last.
#[derive(Debug, Default)]
pub struct StderrExcerpt {
    head: Vec<u8>,
    tail: Vec<u8>,
    /// Whether bytes between the two were dropped.
    lost: bool,
}

impl StderrExcerpt {
    /// Adds bytes that have arrived.
    pub fn add(&mut self, bytes: &[u8]) {
        let room = KEPT - self.head.len();
        let (head, tail) = bytes.split_at(bytes.len().min(room));
        self.head.extend_from_slice(head);
        self.tail.extend_from_slice(tail);
        let excess = self.tail.len().saturating_sub(KEPT);
        self.lost |= excess > 0;
        self.tail.drain(..excess);
    }

    /// Returns the text to append to an error; empty if nothing was written.
    pub fn appended(&self) -> String {
        match self.quote() {
            quote if quote.is_empty() => quote,
            quote => format!("; stderr: {quote}"),
        }
    }

    fn quote(&self) -> String {
        let line = |bytes: &[u8]| -> Vec<char> {
            let text = String::from_utf8_lossy(bytes);
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            words.chars().filter(|c| !c.is_control()).collect()
        };
        let whole = line(&[self.head.as_slice(), &self.tail].concat());
        if whole.len() <= 2 * QUOTED && !self.lost {
            return whole.into_iter().collect();
        }
        let (head, tail) = (&whole[..QUOTED.min(whole.len())], whole.len().saturating_sub(QUOTED));
        format!("{} … {}", String::from_iter(head), String::from_iter(&whole[tail..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginning_and_end_are_quoted() {
        let mut said = StderrExcerpt::default();
        assert_eq!(said.quote(), "");
        said.add(b"error: no\n such option\n");
        assert_eq!(said.quote(), "error: no such option");
        said.add(&[b'.'; 10_000]);
        said.add(b" last words");
        let quote = said.quote();
        assert!(quote.starts_with("error: no such option ...."), "{quote}");
        assert!(quote.contains("... … ...") && quote.ends_with("... last words"), "{quote}");
    }
}
