//! What a vCPU's thread starts with, and what it is asked for.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use kvm_ioctls::VcpuFd;

use super::access::StateCapabilities;
use super::events::EventSink;
use super::state::VcpuState;
use super::state_error::StateError;
use crate::devices::PortBus;

/// A request to a vCPU's thread. Each one that is answered carries its own channel: a late answer
/// must not be taken for that of a later request.
pub(super) enum Request {
    Pause(Sender<Result<(), StateError>>),
    Run,
    Save(Sender<Result<VcpuState, StateError>>),
    Nmi(Sender<Result<(), StateError>>),
    Quit,
}

/// What a vCPU's thread starts with.
pub struct VcpuStart {
    /// Index and APIC ID.
    pub index: u8,
    /// Its descriptor.
    pub fd: VcpuFd,
    /// What KVM offers.
    pub capabilities: Arc<StateCapabilities>,
    /// The devices.
    pub bus: Arc<PortBus>,
    /// Where events go.
    pub events: EventSink,
    /// State to load first; without it the vCPU is ready as it is.
    pub restore: Option<Box<VcpuState>>,
}
