//! Saving a whole machine by system calls alone, for whoever continues the guest when the process
//! that ran it has died, or crashed: into an empty memfd, as records that the same binary reads.
//!
//! What each device guarantees then: the test device has seen each access exactly once; so has the
//! serial port, and each byte goes over its socket exactly once; to a file or a terminal the last
//! one may go twice if the process died while it was written. Of output that the host has not taken the oldest 64 KiB are kept. What is in KVM is as it was.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVMIO, kvm_clock_data,
    kvm_irqchip, kvm_pit_state2,
};
use nix::errno::Errno;
use nix::{request_code_read, request_code_readwrite};
use zerocopy::IntoBytes;

use super::Machine;
use super::order::{self, Part};
use crate::devices::PortBus;
use crate::sys;
use crate::vcpu::order::Item;
use crate::vcpu::raw::{RawVcpu, Record, SalvageError};
use crate::vcpu::shared;

const KVM_GET_IRQCHIP: u64 = request_code_readwrite!(KVMIO, 0x62, size_of::<kvm_irqchip>());
const KVM_GET_CLOCK: u64 = request_code_read!(KVMIO, 0x7c, size_of::<kvm_clock_data>());
const KVM_GET_PIT2: u64 = request_code_read!(KVMIO, 0x9f, size_of::<kvm_pit_state2>());

/// What a record is: the first word of its header.
pub(super) mod kind {
    pub const LOST_WRITE: u32 = 1;
    pub const EVENT: u32 = 2;
    pub const CLOCK: u32 = 3;
    pub const IRQCHIP: u32 = 4;
    pub const PIT: u32 = 5;
    pub const SERIAL: u32 = 6;
    pub const TEST_PORT: u32 = 7;
    pub const TOLD_STOPPED: u32 = 8;
    pub const END: u32 = 9;
    pub const SINCE: u32 = 10;
    pub const SERIAL_SENT: u32 = 11;
    pub const SERIAL_RECEIVED: u32 = 12;
    /// What comes from here on are items of a vCPU.
    pub const FIRST_ITEM: u32 = 64;
}

/// Kind, instance, bytes that follow.
pub(super) type Header = [u32; 4];

/// Where an item's records are.
pub(super) fn kind_of(item: Item) -> u32 {
    kind::FIRST_ITEM + item as u32
}

/// A machine that can be saved without its threads.
pub struct Salvage {
    vcpus: Vec<RawVcpu>,
    vm: RawFd,
    bus: Arc<PortBus>,
    /// Clients were told that the guest has stopped.
    pub told_stopped: AtomicBool,
}

impl Machine {
    /// Prepares to be saved without its threads; `None` where there is no machine. It must be
    /// dropped before the machine is taken apart.
    pub fn salvage(&self) -> Option<Salvage> {
        let part = self.kvm_part.as_ref()?;
        part.bus.shadows(true);
        let raw = |(vcpu, cpuid): (&crate::vcpu::VcpuHandle, &Vec<_>)| {
            RawVcpu::new(vcpu.shared().clone(), part.capabilities.clone(), cpuid.clone())
        };
        Some(Salvage {
            vcpus: part.vcpus.iter().zip(&part.cpuids).map(raw).collect(),
            vm: part.vm.as_raw_fd(),
            bus: part.bus.clone(),
            told_stopped: AtomicBool::new(false),
        })
    }
}

impl Drop for Salvage {
    fn drop(&mut self) {
        self.bus.shadows(false);
    }
}

impl Salvage {
    /// Gets every vCPU out of the guest for good; true if all came within so many milliseconds. In
    /// the process that runs them, not on one of their threads. Async-signal-safe.
    pub fn halt(&self, milliseconds: u32) -> bool {
        shared::halt(self.vcpus.iter().map(RawVcpu::shared), milliseconds)
    }

    /// Writes everything to the memfd `to`. Async-signal-safe.
    ///
    /// # Safety
    /// Nobody else runs or reads the machine (see [`halt`](Self::halt)), all signals are blocked on
    /// this thread, and the process has the address space that the VM was made in.
    pub unsafe fn save(&self, to: RawFd) -> Result<(), SalvageError> {
        let write = SalvageError::of("write");
        sys::truncate(to).map_err(SalvageError::of("ftruncate"))?;
        put(to, kind::SINCE, 0, sys::monotonic_ns().as_bytes()).map_err(&write)?;
        for part in order::SAVE {
            match part {
                // SAFETY: the caller's promise.
                Part::Vcpus => unsafe { self.save_vcpus(to) }?,
                Part::Ioapic => self.save_chip(to, KVM_IRQCHIP_IOAPIC)?,
                Part::Pics => {
                    self.save_chip(to, KVM_IRQCHIP_PIC_MASTER)?;
                    self.save_chip(to, KVM_IRQCHIP_PIC_SLAVE)?;
                }
                Part::Clock => {
                    let mut clock = kvm_clock_data::default();
                    self.get("KVM_GET_CLOCK", KVM_GET_CLOCK, &mut clock)?;
                    put(to, kind::CLOCK, 0, clock.as_bytes()).map_err(&write)?;
                }
                Part::Pit => {
                    let mut pit = kvm_pit_state2::default();
                    self.get("KVM_GET_PIT2", KVM_GET_PIT2, &mut pit)?;
                    put(to, kind::PIT, 0, pit.as_bytes()).map_err(&write)?;
                }
                Part::Devices => {
                    let shadows = self.bus.shadows_now();
                    // SAFETY: no thread publishes any more: the caller's promise.
                    let [serial, test_port] =
                        unsafe { [shadows.serial.newest(), shadows.test_port.newest()] };
                    put(to, kind::SERIAL, 0, serial).map_err(&write)?;
                    let generation = shadows.serial.generation();
                    // SAFETY: as above.
                    let went = unsafe { shadows.serial_io.went(generation) };
                    put(to, kind::SERIAL_SENT, 0, went.sent.as_bytes()).map_err(&write)?;
                    put(to, kind::SERIAL_RECEIVED, 0, went.received).map_err(&write)?;
                    put(to, kind::TEST_PORT, 0, test_port).map_err(&write)?;
                }
            }
        }
        if self.told_stopped.load(Ordering::Relaxed) {
            put(to, kind::TOLD_STOPPED, 0, &[]).map_err(&write)?;
        }
        put(to, kind::END, self.vcpus.len() as u32, &[]).map_err(&write)
    }

    unsafe fn save_vcpus(&self, to: RawFd) -> Result<(), SalvageError> {
        for (index, vcpu) in (0..).zip(&self.vcpus) {
            let mut sink = |record: Record, bytes: &[u8]| {
                let kind = match record {
                    Record::Item(item) => kind_of(item),
                    Record::LostWrite => kind::LOST_WRITE,
                    Record::Event => kind::EVENT,
                };
                put(to, kind, index, bytes)
            };
            // SAFETY: the caller's promise.
            unsafe { vcpu.save(&mut sink) }?;
        }
        Ok(())
    }

    fn save_chip(&self, to: RawFd, chip_id: u32) -> Result<(), SalvageError> {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        self.get("KVM_GET_IRQCHIP", KVM_GET_IRQCHIP, &mut chip)?;
        put(to, kind::IRQCHIP, chip_id, chip.as_bytes()).map_err(SalvageError::of("write"))
    }

    fn get<T>(&self, call: &'static str, request: u64, into: &mut T) -> Result<(), SalvageError> {
        // SAFETY: each request above is given the structure that it fills.
        let result = unsafe { sys::ioctl(self.vm, request, (&raw mut *into) as usize) };
        result.map(drop).map_err(SalvageError::of(call))
    }
}

fn put(to: RawFd, kind: u32, instance: u32, bytes: &[u8]) -> Result<(), Errno> {
    let header: Header = [kind, instance, bytes.len() as u32, 0];
    sys::write_all(to, header.as_bytes())?;
    sys::write_all(to, bytes)
}
