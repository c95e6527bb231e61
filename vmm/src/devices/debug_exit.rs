//! The debug exit port, like QEMU's `isa-debug-exit` (`hw/misc/debugexit.c`). It has no state.

use super::DeviceRequest;

/// First port.
pub const BASE: u16 = 0x501;
/// Number of ports.
pub const PORTS: u16 = 2;

/// A write of `value` ends the VMM with status `value << 1 | 1`.
pub fn write(value: u8) -> DeviceRequest {
    DeviceRequest::Exit(value << 1 | 1)
}
