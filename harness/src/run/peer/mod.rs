//! The other ends of a VM's sockets.

pub mod serial;
pub mod stranger;
