//! The part of the keyboard controller that every PC guest may rely on: reset. It has no state.

use std::convert::Infallible;

use vm_superio::{I8042Device, Trigger};

use super::DeviceRequest;

/// The command port.
pub const COMMAND: u16 = 0x64;
/// The command that resets the machine.
pub const RESET: u8 = 0xfe;
/// Offset of the command port from the data port.
const COMMAND_OFFSET: u8 = 4;

#[derive(Default)]
struct ResetLine(std::cell::Cell<bool>);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// Handles a write to the command port.
pub fn write(value: u8) -> Option<DeviceRequest> {
    let mut device = I8042Device::new(ResetLine::default());
    let Ok(()) = device.write(COMMAND_OFFSET, value);
    device.reset_evt().0.get().then_some(DeviceRequest::Reset)
}

/// Handles a read from the command port: both buffers are empty.
pub fn read() -> u8 {
    I8042Device::new(ResetLine::default()).read(COMMAND_OFFSET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_resets() {
        assert_eq!(write(RESET), Some(DeviceRequest::Reset));
        assert_eq!(write(0xd1), None);
        assert_eq!(read(), 0);
    }
}
