//! Saves a machine and hands it over: status, channels, blockers, and the update.

pub mod blockers;
pub mod channel;
pub mod cpr;
pub mod paused;
pub mod reboot;
pub mod status;
pub mod transfer;
