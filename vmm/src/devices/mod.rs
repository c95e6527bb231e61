//! The devices that are not in KVM, each with a `state` of its own.

mod board;
mod bus;
mod debug_exit;
pub mod i8042;
mod older;
mod option;
pub mod pci;
pub mod power;
mod registry;
pub mod rtc;
mod sequence;
pub mod serial;
pub mod shadow;
mod test_device;
mod test_port;
pub mod virtio;

pub use board::{Board, BoardState};
pub use bus::{DevicesState, PortBus, Shadows};
pub use older::DevicesState1;
pub use option::{DeviceOption, DeviceOptionError};
pub use registry::{DeviceError, PciDevices, PciState, assemble, slots};
pub use test_port::TestPortState;

/// A request from a device to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum DeviceRequest {
    /// Reset the machine.
    Reset,
    /// End the VMM with this status.
    Exit(u8),
    /// Power the machine off.
    PowerOff,
}
