//! When a machine is saved and handed over: parameters, status, channels, blockers, and the update.

pub mod blockers;
pub mod channel;
pub mod cpr;
pub mod status;
