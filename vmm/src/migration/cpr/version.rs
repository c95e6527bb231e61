//! The version of the CPR state.

/// Version 2: one CBOR map after a [`Record`](super::fall_back::Record).
pub const CPR_VERSION: u32 = 2;
