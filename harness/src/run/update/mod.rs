//! What an update is given: its command, its channel, a fault, a point at which it is held.

pub mod channel;
pub mod command;
pub mod fault;
pub mod hold;
pub mod mounts;
