//! Sizes such as `64M`.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = "^[0-9]+[KMG]?$"))]
pub struct Size(pub u64);

/// An error for text that is not a size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid size `{0}`: expected a number, optionally with K, M or G, such as 64M")]
pub struct BadSize(String);

impl Default for Size {
    /// 64 MiB: enough for every guest, and small enough to be quick.
    fn default() -> Self {
        Self(64 << 20)
    }
}

impl FromStr for Size {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let bad = || BadSize(text.to_owned());
        let (number, shift) = match text.char_indices().next_back().ok_or_else(bad)? {
            (at, 'K') => (&text[..at], 10),
            (at, 'M') => (&text[..at], 20),
            (at, 'G') => (&text[..at], 30),
            _ => (text, 0),
        };
        // `parse` would accept a sign.
        let number = Some(number).filter(|n| !n.starts_with('+')).ok_or_else(bad)?;
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "G"), (20, "M"), (10, "K")] {
            if self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl TryFrom<String> for Size {
    type Error = BadSize;

    fn try_from(text: String) -> Result<Self, BadSize> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("64M", 64 << 20)]
    #[case("3G", 3 << 30)]
    #[case("4096", 4096)]
    fn reads(#[case] text: &str, #[case] bytes: u64) {
        assert_eq!(text.parse(), Ok(Size(bytes)));
    }

    #[rstest]
    fn rejects_invalid_size(
        #[values("", "M", "64m", "0", "-1", "+1", "99999999999999999999", "20000000000G")]
        text: &str,
    ) {
        assert_eq!(text.parse::<Size>(), Err(BadSize(text.to_owned())));
    }

    #[test]
    fn prints_as_read() {
        assert_eq!(
            [Size(3 << 30), Size(1536 << 20), Size(5)].map(|s| s.to_string()),
            ["3G", "1536M", "5"]
        );
    }
}
