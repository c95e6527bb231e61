//! An address on the command line.

/// An address could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid address \"{given}\": expected {expected}")]
pub struct AddressError {
    /// The address.
    pub given: String,
    /// What it must look like.
    pub expected: &'static str,
}
