//! The saved state of a virtio device and its PCI function.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState};

use super::common::Common;
use crate::devices::pci::Msix;

/// Errors from restoring a device.
#[derive(Debug, thiserror::Error)]
pub enum VirtioStateError {
    /// The state is that of another kind of device.
    #[error("the saved state of {device} is that of a {found} device")]
    Kind {
        /// The device.
        device: String,
        /// The kind that was saved.
        found: &'static str,
    },
    /// It has other queues or interrupt vectors.
    #[error("the saved state of {device} has {found} {what}, this VMM's has {expected}")]
    Count {
        /// The device.
        device: String,
        /// What is counted.
        what: &'static str,
        /// How many were saved.
        found: usize,
        /// How many there are here.
        expected: usize,
    },
    /// A queue cannot be.
    #[error("the saved state of {device} has an invalid queue {index}: {source}")]
    Queue {
        /// The device.
        device: String,
        /// Its queue.
        index: usize,
        /// Why it is invalid.
        source: virtio_queue::Error,
    },
}

/// A queue and its interrupt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    /// Vector of MSI-X, or none (0xffff).
    pub vector: u16,
    size: u16,
    ready: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
    event_index: bool,
}

impl SavedQueue {
    /// Returns the state of `queue`. Which buffers it has used since its last interrupt is not part
    /// of it: after a restore, there is one more interrupt.
    pub fn of(queue: &Queue, vector: u16) -> Self {
        let state = queue.state();
        Self {
            vector,
            size: state.size,
            ready: state.ready,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
            next_available: state.next_avail,
            next_used: state.next_used,
            event_index: state.event_idx_enabled,
        }
    }

    #[cfg(test)]
    pub(super) fn with_size(&self, size: u16) -> Self {
        Self { size, ..self.clone() }
    }

    /// Returns the queue, of at most `max_size` buffers.
    pub fn queue(&self, max_size: u16) -> Result<Queue, virtio_queue::Error> {
        Queue::try_from(QueueState {
            max_size,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: self.event_index,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        })
    }
}

/// What is special about a kind of device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// The entropy device has no state.
    Rng,
}

impl DeviceState {
    /// The name of the section that has states of this kind.
    pub fn section(&self) -> &'static str {
        match self {
            Self::Rng => "virtio-rng",
        }
    }
}

/// The state of a virtio device and its PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioState {
    /// The registers of the configuration space that the guest can change.
    #[serde(with = "serde_bytes")]
    pub(super) config: Vec<u8>,
    pub(super) msix: Msix,
    pub(super) common: Common,
    pub(super) isr: u8,
    pub(super) queues: Vec<SavedQueue>,
    /// What is special about this kind of device.
    pub device: DeviceState,
}
