//! Limits that the host sets on a running VMM.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::size::Size;

/// A soft limit to set on the VMM from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Restore all previous limits.
    Restore,
    /// Open files; `+N` allows N more than are open.
    Nofile(Amount),
    /// Address space in bytes; `+N` is N more than is mapped.
    As(Amount),
    /// Processes of the VMM's user.
    Nproc(Amount),
    /// Size in bytes of a file that the VMM writes.
    Fsize(Amount),
}

impl Limit {
    /// Whether the limit is `+N` although its resource has no current use to add N to.
    pub fn is_relative_to_nothing(self) -> bool {
        matches!(self, Self::Nproc(Amount::Above(_)) | Self::Fsize(Amount::Above(_)))
    }
}

/// `N`, or `+N` for N more than is in use; optionally with K, M or G.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = r"^\+?[0-9]+[KMG]?$"))]
pub enum Amount {
    /// This amount.
    Exactly(u64),
    /// This amount more than is in use.
    Above(u64),
}

/// An error for text that is not an amount.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid amount `{0}`: expected a number, optionally with + before and K, M or G after it")]
pub struct BadAmount(String);

impl Amount {
    /// The absolute amount, given that `used` is in use.
    pub fn of(self, used: u64) -> u64 {
        match self {
            Self::Exactly(amount) => amount,
            Self::Above(amount) => used.saturating_add(amount),
        }
    }
}

impl FromStr for Amount {
    type Err = BadAmount;

    fn from_str(text: &str) -> Result<Self, BadAmount> {
        let (above, number) = match text.strip_prefix('+') {
            Some(number) => (true, number),
            None => (false, text),
        };
        let number = match number {
            "0" => 0,
            _ => number.parse::<Size>().map_err(|_| BadAmount(text.to_owned()))?.0,
        };
        Ok(if above { Self::Above(number) } else { Self::Exactly(number) })
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, number) = match self {
            Self::Exactly(number) => ("", number),
            Self::Above(number) => ("+", number),
        };
        f.write_str(sign)?;
        if *number == 0 { f.write_str("0") } else { Size(*number).fmt(f) }
    }
}

impl TryFrom<String> for Amount {
    type Error = BadAmount;

    fn try_from(text: String) -> Result<Self, BadAmount> {
        text.parse()
    }
}

impl From<Amount> for String {
    fn from(amount: Amount) -> Self {
        amount.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("0", Amount::Exactly(0))]
    #[case("+0", Amount::Above(0))]
    #[case("4K", Amount::Exactly(4096))]
    #[case("+3", Amount::Above(3))]
    fn reads_and_prints(#[case] text: &str, #[case] amount: Amount) {
        assert_eq!(text.parse(), Ok(amount));
        assert_eq!(amount.to_string(), text);
    }

    #[rstest]
    fn rejects_invalid_amount(#[values("", "+", "-1", "++1", "3x")] text: &str) {
        assert_eq!(text.parse::<Amount>(), Err(BadAmount(text.to_owned())));
    }
}
