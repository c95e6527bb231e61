//! Saves a machine and hands it over: status, channels, blockers, and the modes.

pub mod blockers;
pub mod channel;
pub mod cpr;
mod host_tsc;
pub mod normal;
pub mod paused;
pub mod reboot;
pub mod status;
pub mod transfer;
