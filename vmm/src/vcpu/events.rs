//! What vCPUs tell the machine.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use nix::sys::eventfd::EventFd;
use serde::{Deserialize, Serialize};

use crate::devices::DeviceRequest;

/// Something a vCPU met that the machine must deal with. The vCPU stands still since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestEvent {
    /// The vCPU.
    pub vcpu: u8,
    /// What it met.
    pub kind: GuestEventKind,
}

/// See [`GuestEvent`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestEventKind {
    /// A device asks.
    Device(DeviceRequest),
    /// A triple fault (`KVM_EXIT_SHUTDOWN`).
    TripleFault {
        /// Where; 0 where KVM did not say.
        rip: u64,
    },
    /// KVM cannot go on.
    Failed(String),
}

/// Where guest events go: a queue, and a descriptor that becomes readable.
#[derive(Clone, Debug)]
pub struct EventSink {
    queue: Sender<GuestEvent>,
    wake: Arc<EventFd>,
}

impl EventSink {
    /// Events go to `queue`; `wake` is written after each.
    pub fn new(queue: Sender<GuestEvent>, wake: Arc<EventFd>) -> Self {
        Self { queue, wake }
    }

    pub(super) fn send(&self, event: GuestEvent) {
        // Without a receiver the machine is being taken down, and nobody needs the event.
        if self.queue.send(event).is_ok() {
            let _ = self.wake.write(1);
        }
    }
}
