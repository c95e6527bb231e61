//! Dispatch of port and MMIO accesses to the devices. Unclaimed reads return all ones and unclaimed
//! writes are lost, as on a PC.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::board::{Board, BoardState};
use super::pci::{PciBus, Place};
use super::power::PowerState;
use super::registry::PciDevices;
use super::serial::{self, SerialHost, SerialPort, SerialPortState};
use super::shadow::{Access, Shadow};
use super::{DeviceRequest, TestPortState, debug_exit, i8042, power, rtc, test_port};
use crate::counted_io::CountedIo;

const TEST_FIRST: u16 = test_port::PORT;
const TEST_LAST: u16 = test_port::PORT + 0x1f;

/// Every device behind a port.
#[derive(Debug)]
pub struct PortBus {
    serial: Mutex<SerialPort>,
    test_port: Mutex<TestPortState>,
    board: Mutex<Board>,
    pci: Option<PciDevices>,
    /// Where the test device's interrupts go.
    vm: Arc<VmFd>,
    /// Whether there is a test device.
    pub(super) test_device: bool,
    shadows: Shadows,
}

/// Copies of the devices' states, to continue the guest if this process dies.
#[derive(Debug)]
pub struct Shadows {
    /// The copy of the serial port's state.
    pub serial: Shadow,
    /// Traffic on the serial port's socket since that copy.
    pub serial_io: Arc<CountedIo>,
    /// The copy of the test device's state.
    pub test_port: Shadow,
    /// The copy of the state of the board's devices.
    pub board: Shadow,
}

/// The saved state of every device behind a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesState {
    /// The first serial port.
    pub serial: SerialPortState,
    /// The test port.
    pub test_port: TestPortState,
}

impl PortBus {
    /// Creates the devices as after power-on, or as they were saved, without the test device.
    pub fn new(serial: SerialPort, test_port: TestPortState, board: Board, vm: Arc<VmFd>) -> Self {
        let serial_io = serial.host().exact().clone();
        let [serial_copy, test_port_copy, board_copy] = [(); 3].map(|()| Shadow::default());
        let shadows = Shadows {
            serial: serial_copy,
            serial_io,
            test_port: test_port_copy,
            board: board_copy,
        };
        Self {
            serial: Mutex::new(serial),
            test_port: Mutex::new(test_port),
            board: Mutex::new(board),
            pci: None,
            vm,
            test_device: false,
            shadows,
        }
    }

    /// Adds the devices behind PCI.
    pub fn with_pci(mut self, pci: Option<PciDevices>) -> Self {
        self.pci = pci;
        self
    }

    /// The devices behind PCI.
    pub fn pci(&self) -> Option<&PciDevices> {
        self.pci.as_ref()
    }

    /// Lets the devices with threads of their own access RAM.
    pub fn start(&self) {
        self.pci.iter().for_each(PciDevices::start);
    }

    /// Stops that.
    pub fn quiesce(&self) {
        self.pci.iter().for_each(PciDevices::quiesce);
    }

    /// Whether the thread of any device is accessing RAM. Async-signal-safe.
    pub fn is_active(&self) -> bool {
        self.pci.as_ref().is_some_and(PciDevices::are_active)
    }

    /// The bus, and where an access to a port goes there.
    fn pci_port(&self, port: u16, size: usize) -> Option<(&PciBus, Place)> {
        let bus = self.pci.as_ref()?.bus();
        Some((bus, bus.port(port, size)?))
    }

    /// The bus, and where an access to memory goes there.
    fn pci_memory(&self, address: u64) -> Option<(&PciBus, Place)> {
        let bus = self.pci.as_ref()?.bus();
        Some((bus, bus.memory(address)?))
    }

    /// Enables or disables the copies of the devices' states, which are up to date while `enabled`.
    pub fn shadows(&self, enabled: bool) {
        let Shadows { serial, test_port, board, .. } = &self.shadows;
        let (port, device, chips) = (self.serial(), self.test_port(), self.board());
        if enabled {
            serial.enable(&port.shadow_state());
            test_port.enable(&*device);
            board.enable(chips.state());
        } else {
            serial.disable();
            test_port.disable();
            board.disable();
        }
        port.host().exact().copied(serial.generation());
        drop((port, device, chips));
        self.pci.iter().for_each(|pci| pci.enable_shadows(enabled));
    }

    /// Returns the copies. Takes no lock.
    pub fn shadows_now(&self) -> &Shadows {
        &self.shadows
    }

    fn with_serial<T>(&self, access: Option<&Access>, act: impl FnOnce(&mut SerialPort) -> T) -> T {
        let mut serial = self.serial();
        let result = act(&mut serial);
        self.shadows.serial.publish(|| serial.shadow_state(), access);
        serial.host().exact().copied(self.shadows.serial.generation());
        result
    }

    fn with_test_port<T>(&self, access: &Access, act: impl FnOnce(&mut TestPortState) -> T) -> T {
        let mut test_port = self.test_port();
        let result = act(&mut test_port);
        self.shadows.test_port.publish(|| &*test_port, Some(access));
        result
    }

    fn with_board<T>(&self, access: Option<&Access>, act: impl FnOnce(&mut Board) -> T) -> T {
        let mut board = self.board();
        let result = act(&mut board);
        self.shadows.board.publish(|| board.state(), access);
        result
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.with_board(None, |board| board.with_power(PowerState::press_button));
    }

    /// Raises the real-time clock's interrupt if it is due.
    pub fn service_clock(&self) {
        let mut board = self.board();
        if board.service_clock() {
            self.shadows.board.publish(|| board.state(), None);
        }
    }

    /// Returns the time until the real-time clock's next interrupt.
    pub fn next_clock_interrupt(&self) -> Option<Duration> {
        self.board().next_clock_interrupt()
    }

    /// Sets the levels of interrupt lines again, after KVM's chips were restored: the process may
    /// have died between a change of a device and that of its line.
    pub fn renew_lines(&self) {
        self.board().renew_lines();
        self.pci.iter().for_each(PciDevices::renew_lines);
    }

    /// Moves as much data between the serial port and the host as possible without blocking.
    pub fn service_serial(&self) {
        self.with_serial(None, SerialPort::service);
    }

    /// Locks the serial port, for the host's side.
    pub fn serial(&self) -> std::sync::MutexGuard<'_, SerialPort> {
        // A panic of another vCPU leaves the registers as they are; so would a real UART.
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What survives a reset: the serial port's host side, and the state of the board's devices.
    pub fn into_lasting(self) -> (SerialHost, BoardState) {
        let serial = self.serial.into_inner().unwrap_or_else(PoisonError::into_inner);
        let board = self.board.into_inner().unwrap_or_else(PoisonError::into_inner);
        (serial.into_host(), board.state().clone().after_reset())
    }

    fn test_port(&self) -> std::sync::MutexGuard<'_, TestPortState> {
        self.test_port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the state of the board's devices; the vCPUs must be paused.
    pub fn board_state(&self) -> BoardState {
        self.board().state().clone()
    }

    /// Returns the state of all other devices; the vCPUs must be paused.
    pub fn state(&self) -> DevicesState {
        DevicesState { serial: self.serial().state(), test_port: self.test_port().clone() }
    }

    /// Handles guest reads of `size` bytes each (1, 2 or 4) from `port` until `data` is full. The
    /// copy of the device's state shows all of them or none.
    pub fn read(&self, port: u16, size: usize, data: &mut [u8], access: &Access) {
        data.fill(0xff);
        let items = data.chunks_exact_mut(size.max(1));
        match (port, size) {
            _ if self.hides_port(port) => {}
            (serial::BASE..=serial::LAST, 1) => {
                let offset = (port - serial::BASE) as u8;
                self.with_serial(Some(access), |serial| data.fill_with(|| serial.read(offset)));
            }
            (i8042::COMMAND, 1) => data.fill_with(i8042::read),
            (power::EVENTS..=power::LAST, _) => {
                self.with_board(Some(access), |board| {
                    board.with_power(|power| items.for_each(|item| power.read(port, item)));
                });
            }
            (rtc::INDEX..=rtc::DATA, 1) => {
                self.with_board(Some(access), |board| data.fill_with(|| board.read_clock(port)));
            }
            (TEST_FIRST..=TEST_LAST, _) => {
                self.with_test_port(access, |device| {
                    items.for_each(|item| device.read(port, item))
                });
            }
            _ => {
                if let Some((pci, place)) = self.pci_port(port, size) {
                    pci.read(place, size, data, access);
                }
            }
        }
    }

    /// Handles a guest write of `data` (1, 2 or 4 bytes) to `port`.
    pub fn write(&self, port: u16, data: &[u8], access: &Access) -> Option<DeviceRequest> {
        const DEBUG_EXIT_LAST: u16 = debug_exit::BASE + debug_exit::PORTS - 1;
        match (port, data) {
            _ if self.hides_port(port) => None,
            (serial::BASE..=serial::LAST, &[byte]) => {
                let offset = (port - serial::BASE) as u8;
                self.with_serial(Some(access), |serial| serial.write(offset, byte));
                None
            }
            (i8042::COMMAND, &[byte]) => i8042::write(byte),
            (power::EVENTS..=power::LAST, data) => {
                let mut board = self.board();
                let off = board.with_power(|power| power.write(port, data));
                // A write that powers off is done once the vCPU has recorded that; until then it is
                // repeated if the process dies.
                self.shadows.board.publish(|| board.state(), (!off).then_some(access));
                off.then_some(DeviceRequest::PowerOff)
            }
            (rtc::INDEX..=rtc::DATA, &[byte]) => {
                self.with_board(Some(access), |board| board.write_clock(port, byte));
                None
            }
            (debug_exit::BASE..=DEBUG_EXIT_LAST, &[value, ..]) => Some(debug_exit::write(value)),
            (test_port::LINES, &[line, order, ..]) => {
                self.order_line(line, order);
                None
            }
            (TEST_FIRST..=TEST_LAST, data) => {
                self.with_test_port(access, |device| device.write(port, data));
                None
            }
            _ => {
                if let Some((pci, place)) = self.pci_port(port, data.len()) {
                    pci.write(place, data, access);
                }
                None
            }
        }
    }

    /// Moves an interrupt line, as the guest has told the test device.
    fn order_line(&self, line: u8, order: u8) {
        for level in test_port::levels(order) {
            if let Err(error) = self.vm.set_irq_line(line.into(), *level) {
                tracing::warn!(line, %error, "test_line_failed");
            }
        }
    }

    /// Handles a guest read of up to 8 bytes from an address outside of RAM.
    pub fn mmio_read(&self, address: u64, data: &mut [u8], access: &Access) {
        data.fill(0xff);
        if let (true, test_port::PAGE..test_port::PAGE_END) = (self.test_device, address) {
            let offset = address - test_port::PAGE;
            self.with_test_port(access, |device| device.page.read(offset, data));
        } else if let Some((pci, place)) = self.pci_memory(address) {
            pci.read(place, data.len(), data, access);
        }
    }

    /// Handles a guest write of up to 8 bytes to an address outside of RAM.
    pub fn mmio_write(&self, address: u64, data: &[u8], access: &Access) {
        if let (true, test_port::PAGE..test_port::PAGE_END) = (self.test_device, address) {
            let offset = address - test_port::PAGE;
            self.with_test_port(access, |device| device.page.write(offset, data));
        } else if let Some((pci, place)) = self.pci_memory(address) {
            pci.write(place, data, access);
        }
    }
}
