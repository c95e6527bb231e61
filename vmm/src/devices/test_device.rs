//! Whether the machine has the devices that only tests use: the test device, and the debug exit
//! port. Without them, reads return all ones and writes are lost.

use super::{PortBus, debug_exit, test_port};

const TEST_LAST: u16 = test_port::PORT + 0x1f;
const EXIT_LAST: u16 = debug_exit::BASE + debug_exit::PORTS - 1;

impl PortBus {
    /// Adds or removes the test device.
    pub fn with_test_device(mut self, test_device: bool) -> Self {
        self.test_device = test_device;
        self
    }

    /// Whether `port` is unclaimed because there is no test device.
    pub(super) fn hides_port(&self, port: u16) -> bool {
        !self.test_device
            && matches!(port, test_port::PORT..=TEST_LAST | debug_exit::BASE..=EXIT_LAST)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvm_ioctls::Kvm;
    use nix::sys::eventfd::EventFd;

    use super::*;
    use crate::devices::serial::{SerialConfig, SerialHost, SerialPort};
    use crate::devices::shadow::Access;
    use crate::devices::{Board, TestPortState};

    fn bus() -> PortBus {
        let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
        let null = SerialHost::open(&SerialConfig::Null, None, &mut |_| None).unwrap();
        let wake = Arc::new(EventFd::new().unwrap());
        let board = Board::new(Default::default(), vm.clone(), wake.clone());
        let serial = SerialPort::new(vm.clone(), wake, null, &Default::default()).unwrap();
        PortBus::new(serial, TestPortState::default(), board, vm)
    }

    #[test]
    fn without_test_device_its_addresses_are_unclaimed() {
        let bus = bus();
        let see = |bus: &PortBus| {
            let access = Access::default();
            let exits = bus.write(debug_exit::BASE, &[1], &access).is_some();
            bus.write(test_port::PORT, &7_u32.to_le_bytes(), &access);
            bus.mmio_write(test_port::PAGE, &[0], &access);
            let (mut port, mut page) = ([0; 4], [0; 4]);
            bus.read(test_port::PORT, 4, &mut port, &access);
            bus.mmio_read(test_port::PAGE, &mut page, &access);
            let silent = (port, page) == ([0xff; 4], [0xff; 4]);
            (exits, silent, bus.state().test_port == TestPortState::default())
        };
        assert_eq!(see(&bus), (false, true, true));
        assert_eq!(see(&bus.with_test_device(true)), (true, false, false));
    }
    #[test]
    fn copy_shows_all_items_of_string_input_or_none() {
        let bus = bus().with_test_device(true);
        bus.shadows(true);
        let access = Access::default();
        let before = bus.shadows_now().test_port.generation();
        let mut items = [0; 3];
        access.handle_at_once(3);
        bus.read(test_port::SEQUENCE, 1, &mut items, &access);
        assert_eq!(items, [0, 1, 2]);
        assert_eq!(access.items_done(), 3);
        assert_eq!(bus.shadows_now().test_port.generation(), before + 1);
    }
}
