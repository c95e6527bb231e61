//! Events that vCPUs send to the machine.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use nix::sys::eventfd::EventFd;
use serde::{Deserialize, Serialize};

use crate::devices::DeviceRequest;

/// An event that stopped a vCPU and that the machine must handle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestEvent {
    /// The vCPU.
    pub vcpu: u8,
    /// What happened.
    pub kind: GuestEventKind,
}

/// The kinds of [`GuestEvent`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestEventKind {
    /// A device request.
    Device(DeviceRequest),
    /// A triple fault (`KVM_EXIT_SHUTDOWN`).
    TripleFault {
        /// The guest's RIP; 0 if KVM did not provide it.
        rip: u64,
    },
    /// The vCPU cannot continue.
    Failed(String),
}

/// The destination of guest events: a queue, and an eventfd that becomes readable.
#[derive(Clone, Debug)]
pub struct EventSink {
    queue: Sender<GuestEvent>,
    wake: Arc<EventFd>,
}

impl EventSink {
    /// Sends events to `queue`, and writes to `wake` after each.
    pub fn new(queue: Sender<GuestEvent>, wake: Arc<EventFd>) -> Self {
        Self { queue, wake }
    }

    pub(super) fn send(&self, event: GuestEvent) {
        // Without a receiver, the machine is being torn down and the event is not needed.
        if self.queue.send(event).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}
