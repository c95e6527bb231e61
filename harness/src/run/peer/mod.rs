//! The other ends of a VM's sockets.

pub mod misbehaving_client;
pub mod serial;
