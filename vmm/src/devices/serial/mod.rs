//! The first serial port: a 16550 towards the guest, a file, socket or terminal towards the host.

mod config;
mod host;

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use kvm_ioctls::VmFd;
use nix::poll::PollFlags;
use nix::sys::eventfd::EventFd;
use serde::{Deserialize, Serialize};
use vm_superio::serial::{SerialEvents, SerialState};
use vm_superio::{Serial, Trigger};

pub use config::SerialConfig;
pub use host::{HostError, SerialHost};

/// First port of COM1.
pub const BASE: u16 = 0x3f8;
/// Last port of COM1.
pub const LAST: u16 = 0x3ff;
/// Its interrupt.
pub const IRQ: u32 = 4;

/// An edge-triggered interrupt line into KVM's irqchip.
///
/// `KVM_IRQ_LINE`, not an irqfd: the interrupt is in the irqchip when the call returns, so a save
/// right after it has it; an irqfd may still have it in a work queue.
struct IrqLine {
    vm: Arc<VmFd>,
}

impl Trigger for IrqLine {
    type E = kvm_ioctls::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        self.vm.set_irq_line(IRQ, true)?;
        self.vm.set_irq_line(IRQ, false)
    }
}

/// Tells the main loop that the guest has made room in its receive FIFO.
struct WakeOnRoom(Arc<EventFd>);

impl SerialEvents for WakeOnRoom {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // The counter can only be full if the main loop has a wake-up coming anyway.
        let _ = self.0.write(1);
    }
}

/// The device and what it is connected to.
pub struct SerialPort {
    device: Serial<IrqLine, WakeOnRoom, SerialHost>,
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SerialPort").field("host", self.device.writer()).finish_non_exhaustive()
    }
}

/// The saved state of a serial port: its registers and what was on the way to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SerialPortState {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    #[serde(with = "serde_bytes")]
    pub in_buffer: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub pending_output: Vec<u8>,
}

impl Default for SerialPortState {
    fn default() -> Self {
        Self::new(SerialState::default(), Vec::new())
    }
}

impl SerialPortState {
    fn new(registers: SerialState, pending_output: Vec<u8>) -> Self {
        Self {
            baud_divisor_low: registers.baud_divisor_low,
            baud_divisor_high: registers.baud_divisor_high,
            interrupt_enable: registers.interrupt_enable,
            interrupt_identification: registers.interrupt_identification,
            line_control: registers.line_control,
            line_status: registers.line_status,
            modem_control: registers.modem_control,
            modem_status: registers.modem_status,
            scratch: registers.scratch,
            in_buffer: registers.in_buffer,
            pending_output,
        }
    }

    fn registers(&self) -> SerialState {
        SerialState {
            baud_divisor_low: self.baud_divisor_low,
            baud_divisor_high: self.baud_divisor_high,
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: self.in_buffer.clone(),
        }
    }
}

/// Errors from setting up a serial port.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// The saved registers are invalid.
    #[error("invalid saved state of the serial port: {0}")]
    State(String),
}

impl SerialPort {
    /// Creates a port with the registers of `state`.
    ///
    /// It may raise its interrupt at once, so a restore sets the irqchip's state afterwards.
    pub fn new(
        vm: Arc<VmFd>,
        wake: Arc<EventFd>,
        mut host: SerialHost,
        state: &SerialPortState,
    ) -> Result<Self, SerialError> {
        host.queue(&state.pending_output);
        let device = Serial::from_state(&state.registers(), IrqLine { vm }, WakeOnRoom(wake), host)
            .map_err(|error| SerialError::State(error.to_string()))?;
        Ok(Self { device })
    }

    /// Returns the registers, and output that the host has not taken yet.
    pub fn state(&self) -> SerialPortState {
        SerialPortState::new(self.device.state(), self.device.writer().pending())
    }

    /// Returns the state for a [`Shadow`](super::shadow::Shadow), with only the oldest 64 KiB of
    /// output.
    pub fn shadow_state(&self) -> SerialPortState {
        const MOST_OUTPUT: usize = 64 << 10;
        let output = self.device.writer().oldest_pending(MOST_OUTPUT);
        SerialPortState::new(self.device.state(), output)
    }

    /// Replays the traffic between the copy that this port was created from and the death of the
    /// process. Must be called before the guest runs, and before its lost writes are replayed.
    pub fn apply_traffic(&mut self, sent: u64, received: &[u8]) {
        self.device.writer_mut().skip_output(sent);
        if let Err(error) = self.device.enqueue_raw_bytes(received) {
            tracing::warn!(%error, "serial_input_lost");
        }
    }

    /// Returns the host's side, for a port in a rebuilt machine.
    pub fn into_host(self) -> SerialHost {
        self.device.into_writer()
    }

    /// The host's side.
    pub fn host(&self) -> &SerialHost {
        self.device.writer()
    }

    pub(super) fn read(&mut self, offset: u8) -> u8 {
        self.device.read(offset)
    }

    pub(super) fn write(&mut self, offset: u8, value: u8) {
        if let Err(error) = self.device.write(offset, value) {
            tracing::warn!(%error, offset, value, "serial_write_failed");
        }
    }

    /// The host's side, mutable.
    pub fn host_mut(&mut self) -> &mut SerialHost {
        self.device.writer_mut()
    }

    /// Descriptors to poll, each with its events.
    pub fn poll_fds(&mut self) -> Vec<(i32, PollFlags)> {
        let room = self.device.fifo_capacity() > 0;
        self.device.writer_mut().retry_accept(room);
        let host = self.device.writer();
        let mut fds = Vec::new();
        fds.extend(host.listener_fd(room).map(|fd| (fd.as_raw_fd(), PollFlags::POLLIN)));
        if room {
            fds.extend(host.input_fd().map(|fd| (fd.as_raw_fd(), PollFlags::POLLIN)));
        } else if !host.client_has_left() {
            // Without room for input it still matters when the client leaves.
            fds.extend(host.client_fd().map(|fd| (fd.as_raw_fd(), PollFlags::empty())));
        }
        fds.extend(host.blocked_output_fd().map(|fd| (fd.as_raw_fd(), PollFlags::POLLOUT)));
        fds
    }

    /// Moves as much data as possible without blocking, in both directions.
    pub fn service(&mut self) {
        let room = self.device.fifo_capacity();
        self.device.writer_mut().accept(room > 0);
        self.device.writer_mut().flush_pending();
        if room > 0 {
            let input = self.device.writer_mut().receive(room);
            if !input.is_empty()
                && let Err(error) = self.device.enqueue_raw_bytes(&input)
            {
                tracing::warn!(%error, "serial_input_lost");
            }
        }
    }

    /// Descriptors that an update hands over, by name.
    pub fn preserved_fds(&self) -> Vec<(&'static str, std::os::fd::BorrowedFd<'_>)> {
        self.device.writer().preserved_fds()
    }
}

/// Looks up a descriptor that came over exec.
pub type TakeFd<'a> = &'a mut dyn FnMut(&str) -> Option<OwnedFd>;
