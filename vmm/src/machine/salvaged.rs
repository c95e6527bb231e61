//! Reading the state that [`Salvage`](super::salvage::Salvage) has written.

use kvm_bindings::{kvm_clock_data, kvm_irqchip, kvm_pit_state2};
use zerocopy::FromBytes;

use super::Machine;
use super::salvage::{Header, kind, kind_of};
use super::state::{PlatformState, RestoredState};
use crate::devices::shadow::Access;
use crate::devices::{DevicesState, PciState};
use crate::vcpu::raw::{LostWrite, RecordSize};
use crate::vcpu::shared::VcpuShared;
use crate::vcpu::{GuestEvent, GuestEventKind, VcpuState, order};

/// Errors from reading a salvaged state.
#[derive(Debug, thiserror::Error)]
pub enum SalvagedError {
    /// The state is truncated.
    #[error("the salvaged state is truncated")]
    CutOff,
    /// A record has the wrong size.
    #[error("invalid salvaged state: {0}")]
    Size(#[from] RecordSize),
    /// A record is invalid.
    #[error("invalid salvaged state: {0}")]
    Invalid(&'static str),
    /// The state is that of another machine.
    #[error("the salvaged state has {found} vCPUs, the command line says {expected}")]
    OtherMachine {
        /// vCPUs in the state.
        found: usize,
        /// vCPUs on the command line.
        expected: usize,
    },
}

/// A machine as its process left it.
pub struct Salvaged {
    /// The same content as a saved state.
    pub state: RestoredState,
    /// Guest writes that no device has seen, with their vCPUs.
    pub lost_writes: Vec<(u8, LostWrite)>,
    /// The events that stopped vCPUs.
    pub events: Vec<GuestEvent>,
    /// Whether clients were told that the guest has stopped.
    pub stop_reported: bool,
    /// Traffic on the serial port's socket that its state lacks: bytes sent, and the bytes
    /// received.
    pub serial_went: (u64, Vec<u8>),
    /// `CLOCK_MONOTONIC` when it was saved, in nanoseconds.
    pub since_ns: u64,
}

#[derive(Default)]
struct Found {
    vcpus: Vec<VcpuState>,
    lost_writes: Vec<(u8, LostWrite)>,
    events: Vec<GuestEvent>,
    clock: Option<kvm_clock_data>,
    chips: [Option<kvm_irqchip>; 3],
    pit: Option<kvm_pit_state2>,
    serial: Vec<u8>,
    test_port: Vec<u8>,
    board: Vec<u8>,
    pci: Option<Vec<u8>>,
    devices: Vec<(u8, Vec<u8>)>,
    stop_reported: bool,
    since_ns: u64,
    serial_went: (u64, Vec<u8>),
    ended: bool,
}

impl Machine {
    /// Reads a salvaged state.
    pub fn read_salvaged(&self, mut bytes: &[u8]) -> Result<Salvaged, SalvagedError> {
        let mut found = Found::default();
        while !found.ended {
            let (header, rest) =
                Header::read_from_prefix(bytes).map_err(|_| SalvagedError::CutOff)?;
            let [kind, instance, length, _] = header;
            let content = rest.get(..length as usize).ok_or(SalvagedError::CutOff)?;
            bytes = &rest[length as usize..];
            found.add(kind, instance, content)?;
        }
        let expected = usize::from(self.config.cpus);
        if found.vcpus.len() != expected {
            let found = found.vcpus.len();
            return Err(SalvagedError::OtherMachine { found, expected });
        }
        found.whole()
    }

    /// Replays to the devices, before the guest runs, what the guest had written and the traffic on
    /// the serial port's socket.
    pub fn apply_traffic(&mut self, lost_writes: &[(u8, LostWrite)], serial: &(u64, Vec<u8>)) {
        let Some(bus) = self.bus() else { return };
        bus.serial().apply_traffic(serial.0, &serial.1);
        let mut events = Vec::new();
        for (vcpu, write) in lost_writes {
            let access = Access::default();
            if write.is_port == 0 {
                bus.mmio_write(write.address, write.bytes(), &access);
            } else if let Some(request) = bus.write(write.address as u16, write.bytes(), &access) {
                events.push(GuestEvent { vcpu: *vcpu, kind: GuestEventKind::Device(request) });
            }
        }
        self.put_back_events(events);
    }
}

impl Found {
    fn add(&mut self, kind: u32, instance: u32, bytes: &[u8]) -> Result<(), SalvagedError> {
        const INVALID: SalvagedError = SalvagedError::Invalid("a record has the wrong size");
        fn read<T: FromBytes>(bytes: &[u8]) -> Result<T, SalvagedError> {
            T::read_from_bytes(bytes).map_err(|_| INVALID)
        }
        match kind {
            kind::LOST_WRITE => self.lost_writes.push((instance as u8, read(bytes)?)),
            kind::EVENT => {
                let kind = VcpuShared::event_of(read(bytes)?);
                let event = |kind| GuestEvent { vcpu: instance as u8, kind };
                self.events.extend(kind.map(event));
            }
            kind::CLOCK => self.clock = Some(read(bytes)?),
            kind::IRQCHIP => {
                *self.chips.get_mut(instance as usize).ok_or(INVALID)? = Some(read(bytes)?);
            }
            kind::PIT => self.pit = Some(read(bytes)?),
            kind::SERIAL => self.serial = bytes.to_vec(),
            kind::TEST_PORT => self.test_port = bytes.to_vec(),
            kind::BOARD => self.board = bytes.to_vec(),
            kind::PCI => self.pci = Some(bytes.to_vec()),
            kind::DEVICE => self.devices.push((instance as u8, bytes.to_vec())),
            kind::TOLD_STOPPED => self.stop_reported = true,
            kind::SERIAL_SENT => self.serial_went.0 = read(bytes)?,
            kind::SERIAL_RECEIVED => self.serial_went.1 = bytes.to_vec(),
            kind::SINCE => self.since_ns = read(bytes)?,
            kind::END => self.ended = true,
            other => {
                let item = order::SAVE.into_iter().find(|item| kind_of(*item) == other);
                let item = item.ok_or(SalvagedError::Invalid("a record has an unknown kind"))?;
                let index = instance as usize;
                if index == self.vcpus.len() {
                    self.vcpus.push(VcpuState::of_records());
                }
                self.vcpus.get_mut(index).ok_or(INVALID)?.add(item, bytes)?;
            }
        }
        Ok(())
    }

    fn whole(self) -> Result<Salvaged, SalvagedError> {
        let missing = SalvagedError::Invalid("a chip is missing");
        let (Some(clock), [Some(master), Some(slave), Some(ioapic)], Some(pit)) =
            (self.clock, self.chips, self.pit)
        else {
            return Err(missing);
        };
        const DEVICE: SalvagedError = SalvagedError::Invalid("a device's state cannot be decoded");
        let mut pci = PciState::default();
        if let Some(host) = &self.pci {
            pci.host = ciborium::from_reader(host.as_slice()).map_err(|_| DEVICE)?;
        }
        for (slot, state) in &self.devices {
            let state = ciborium::from_reader(state.as_slice()).map_err(|_| DEVICE)?;
            pci.devices.push((*slot, state));
        }
        let (Ok(serial), Ok(test_port), Ok(board)) = (
            ciborium::from_reader(self.serial.as_slice()),
            ciborium::from_reader(self.test_port.as_slice()),
            ciborium::from_reader(self.board.as_slice()),
        ) else {
            return Err(DEVICE);
        };
        let state = RestoredState {
            devices: DevicesState { serial, test_port },
            board,
            pci,
            vcpus: self.vcpus,
            platform: PlatformState::of([master, slave, ioapic], pit, clock),
        };
        let Self { lost_writes, events, stop_reported, serial_went, since_ns, .. } = self;
        Ok(Salvaged { state, lost_writes, events, stop_reported, serial_went, since_ns })
    }
}
