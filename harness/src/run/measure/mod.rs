//! What is measured of an update.

pub mod blackout;
pub mod growth;
