//! Virtio devices, behind PCI.
//!
//! Source: Virtual I/O Device (VIRTIO) 1.3; the chapters below are those of that document.

mod common;
mod function;
mod pci;
mod registers;
mod rng;
mod state;
mod worker;

use std::time::Instant;

use vm_memory::GuestMemoryError;

use crate::memory::GuestMemory;

pub use function::{BAR_SIZE, FunctionConfig, Wiring};
pub use pci::VirtioPci;
pub use rng::{Rng, RngLimit};
pub use state::{DeviceState, VirtioState, VirtioStateError};

/// A queue cannot be served, as a rule because the guest has broken its rules: the device needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A queue or a descriptor chain is invalid.
    #[error(transparent)]
    Queue(#[from] virtio_queue::Error),
    /// A buffer is not in RAM.
    #[error(transparent)]
    Memory(#[from] GuestMemoryError),
    /// The host gives no random bytes.
    #[error("cannot get random bytes: getrandom: {0}")]
    Entropy(std::io::Error),
}

/// Errors from creating a device.
#[derive(Debug, thiserror::Error)]
pub enum VirtioError {
    /// It cannot have a thread.
    #[error("cannot start the thread of {device}: {source}")]
    Worker {
        /// The device.
        device: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Its saved state is invalid.
    #[error(transparent)]
    State(#[from] VirtioStateError),
}

/// What is special about a kind of virtio device.
pub trait VirtioDevice: std::fmt::Debug + Send {
    /// The device ID (chapter 5).
    fn id(&self) -> u16;

    /// Its class as a PCI function: base class, subclass, programming interface.
    fn class(&self) -> [u8; 3];

    /// The feature bits that it offers, besides those of the transport.
    fn features(&self) -> u64;

    /// The maximum size of each of its queues.
    fn queue_sizes(&self) -> &[u16];

    /// Handles what is in the queue `index`; returns whether it has used a buffer.
    fn process(
        &mut self,
        index: usize,
        queue: &mut virtio_queue::Queue,
        memory: &GuestMemory,
    ) -> Result<bool, QueueError>;

    /// Returns when to look at its queues again: until then, requests wait there.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Returns the state that is special about it.
    fn state(&self) -> DeviceState;
}
