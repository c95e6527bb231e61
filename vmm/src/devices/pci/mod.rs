//! PCI: the host bridge, and the functions behind it on bus 0.

mod bus;
mod config_space;
mod intx;
mod msix;

pub use bus::{CONFIG_PORTS, PciBus, PciFunction, PciHostState, Place};
pub use config_space::{COMMAND, COMMAND_BUS_MASTER, COMMAND_NO_INTX, ConfigSpace, Identity};
pub use intx::{Intx, IntxLines, LINES as INTX_LINES};
pub use msix::{
    CAPABILITY as MSIX_CAPABILITY, CONTROL_WRITABLE as MSIX_CONTROL_WRITABLE, Message, Msix,
};

/// The highest device number.
pub const LAST_SLOT: u8 = 31;
