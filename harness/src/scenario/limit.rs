//! Limits that the host puts on a running VMM.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::size::Size;

/// A soft limit to set on the VMM from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Put back all that was there before.
    Restore,
    /// Open files; `+N` lets N more be opened.
    Nofile(Amount),
    /// Address space in bytes; `+N` is N more than is mapped.
    As(Amount),
    /// Processes of its user.
    Nproc(Amount),
    /// Bytes of a file it writes.
    Fsize(Amount),
}

impl Limit {
    /// There is nothing in use that `+N` could be above.
    pub fn is_relative_to_nothing(self) -> bool {
        matches!(self, Self::Nproc(Amount::Above(_)) | Self::Fsize(Amount::Above(_)))
    }
}

/// `N`, or `+N` above what is in use; with K, M or G.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(extend("pattern" = r"^\+?[0-9]+[KMG]?$"))]
pub enum Amount {
    /// This much.
    Exactly(u64),
    /// This much more than is in use.
    Above(u64),
}

/// Not an amount.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no amount; write a number, with K, M or G if need be, or + and a number")]
pub struct BadAmount(String);

impl Amount {
    /// In figures, if `used` is in use.
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
    fn refuses(#[values("", "+", "-1", "++1", "3x")] text: &str) {
        assert_eq!(text.parse::<Amount>(), Err(BadAmount(text.to_owned())));
    }
}
