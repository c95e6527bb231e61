//! `--serial`: what the port is connected to.

use std::path::PathBuf;
use std::str::FromStr;

use crate::address::AddressError;

/// The value of `--serial`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialConfig {
    /// Output is discarded; there is no input.
    Null,
    /// The VMM's own stdin and stdout.
    Stdio,
    /// Output is appended to a file.
    File(PathBuf),
    /// A listening socket; one client at a time.
    Unix(PathBuf),
}

impl FromStr for SerialConfig {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match (text, text.split_once(':')) {
            ("null", _) => Ok(Self::Null),
            ("stdio", _) => Ok(Self::Stdio),
            (_, Some(("file", path))) if !path.is_empty() => Ok(Self::File(path.into())),
            (_, Some(("unix", path))) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(AddressError {
                given: text.to_owned(),
                expected: "null, stdio, file:PATH or unix:PATH",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("null", SerialConfig::Null)]
    #[case("stdio", SerialConfig::Stdio)]
    #[case("file:/a:b", SerialConfig::File("/a:b".into()))]
    #[case("unix:s", SerialConfig::Unix("s".into()))]
    fn parses_serial(#[case] text: &str, #[case] expected: SerialConfig) {
        assert_eq!(text.parse(), Ok(expected));
    }

    #[rstest]
    #[case("tcp::1")]
    #[case("file:")]
    #[case("unix:")]
    #[case("")]
    fn rejects_invalid_serial(#[case] text: &str) {
        assert!(text.parse::<SerialConfig>().is_err());
    }
}
