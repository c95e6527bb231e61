//! The names of descriptors that cross exec.

/// The names of the two ends of the socket pair that reports signals.
pub const SIGNALS_FDS: [&str; 2] = ["signals.reader", "signals.writer"];
/// The name of KVM's descriptor, which is bound to no address space: a VMM that receives it need
/// not open `/dev/kvm` again.
pub const KVM_FD: &str = "kvm";
/// The name of the old binary's descriptor.
pub const BINARY_FD: &str = "fall-back.binary";
/// The name of the copy of the saved state.
pub const SAVED_FD: &str = "fall-back.state";
/// The name of the memfd for a state that is saved without its process.
pub const DUMP_FD: &str = "keeper.state";
/// The name of the memfd for traffic on QMP's sockets that the published state does not include.
pub const TRAFFIC_FD: &str = "keeper.traffic";
