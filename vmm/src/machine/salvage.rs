//! Saving a whole machine with system calls only, to continue the guest after the process that ran
//! it has died or crashed: into an empty memfd, as records that the same binary reads.
//!
//! Guarantees of the devices: they see each access exactly once, except for MMIO reads of more than
//! 8 bytes, which restart at their first 8. Each byte goes over its socket exactly once; to a file
//! or a terminal, the last one may go twice if the process died while it was written. Of output that
//! the host has not taken, the oldest 64 KiB are kept. State in KVM is unchanged.

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

/// The kinds of records: the first word of a header.
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
    pub const BOARD: u32 = 13;
    pub const PCI: u32 = 14;
    /// A device behind PCI, with its slot as the instance.
    pub const DEVICE: u32 = 15;
    /// Kinds from here on are items of a vCPU.
    pub const FIRST_ITEM: u32 = 64;
}

/// The header of a record: kind, instance, bytes that follow, zero.
pub(super) type Header = [u32; 4];

/// The kind of an item's records.
pub(super) fn kind_of(item: Item) -> u32 {
    kind::FIRST_ITEM + item as u32
}

/// A machine that can be saved without its threads.
pub struct Salvage {
    vcpus: Vec<RawVcpu>,
    vm: RawFd,
    bus: Arc<PortBus>,
    /// Whether clients were told that the guest has stopped.
    pub stop_reported: AtomicBool,
}

impl Machine {
    /// Prepares the machine to be saved without its threads; `None` if there is no VM. The result
    /// must be dropped before the machine is torn down.
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
            stop_reported: AtomicBool::new(false),
        })
    }
}

impl Drop for Salvage {
    fn drop(&mut self) {
        self.bus.shadows(false);
    }
}

impl Salvage {
    /// Whether no vCPU's thread has ended.
    pub fn is_whole(&self) -> bool {
        !self.vcpus.iter().any(|vcpu| vcpu.shared().has_ended())
    }

    /// Gets every vCPU out of the guest for good; returns true if all left within `milliseconds`.
    /// Must be called in the process that runs them, but not on one of their threads.
    /// Async-signal-safe.
    pub fn halt(&self, milliseconds: u32) -> bool {
        let until = sys::monotonic_ns() + u64::from(milliseconds) * 1_000_000;
        if !shared::halt(self.vcpus.iter().map(RawVcpu::shared), milliseconds) {
            return false;
        }
        while self.bus.is_active() {
            if sys::monotonic_ns() > until {
                return false;
            }
            sys::yield_now();
        }
        true
    }

    /// Writes everything to the memfd `to`. Async-signal-safe.
    ///
    /// # Safety
    /// Nothing else runs or reads the machine (see [`halt`](Self::halt)), all signals are blocked
    /// on this thread, and the process has the address space that the VM was created in.
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
                    // SAFETY: no thread publishes any longer: the caller's promise.
                    let [serial, test_port, board] = unsafe {
                        [&shadows.serial, &shadows.test_port, &shadows.board]
                            .map(|shadow| shadow.newest())
                    };
                    put(to, kind::SERIAL, 0, serial).map_err(&write)?;
                    let generation = shadows.serial.generation();
                    // SAFETY: as above.
                    let went = unsafe { shadows.serial_io.went(generation) };
                    put(to, kind::SERIAL_SENT, 0, went.sent.as_bytes()).map_err(&write)?;
                    put(to, kind::SERIAL_RECEIVED, 0, went.received).map_err(&write)?;
                    put(to, kind::TEST_PORT, 0, test_port).map_err(&write)?;
                    put(to, kind::BOARD, 0, board).map_err(&write)?;
                    // SAFETY: as above.
                    unsafe { self.save_pci(to) }.map_err(&write)?;
                }
            }
        }
        if self.stop_reported.load(Ordering::Relaxed) {
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

    /// # Safety
    /// As of [`save`](Self::save).
    unsafe fn save_pci(&self, to: RawFd) -> Result<(), Errno> {
        let Some(pci) = self.bus.pci() else { return Ok(()) };
        // SAFETY: no thread publishes any longer: the caller's promise.
        put(to, kind::PCI, 0, unsafe { pci.bus().host_shadow().newest() })?;
        for (slot, shadow) in pci.shadows() {
            // SAFETY: as above.
            put(to, kind::DEVICE, slot.into(), unsafe { shadow.newest() })?;
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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use nix::sys::memfd::MFdFlags;
    use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

    use super::*;
    use crate::boot;
    use crate::devices::serial::{SerialConfig, SerialHost};
    use crate::machine::MachineConfig;
    use crate::memory::{MemoryConfig, PageKind, RamBlock};

    /// Fields that tell the time, which advances between two saves.
    const CLOCKS: [&str; 3] = ["clock", "tsc", "realtime"];

    fn newest() -> crate::state::Formats {
        crate::state::Formats::newest(&crate::machine::SECTIONS)
    }

    fn machine(cpus: u8) -> Machine {
        let memory = MemoryConfig { size: 4 << 20, share: true, pages: PageKind::Small };
        let config = MachineConfig {
            memory,
            cpus,
            cmdline: String::new(),
            test_device: true,
            devices: Vec::new(),
        };
        let image = boot::kernel(&[(1 << 20, 1, 1)]);
        let ram = RamBlock::create(memory).unwrap();
        let mut machine = Machine::new(config, ram, Some(image), None).unwrap();
        let null = SerialHost::open(&SerialConfig::Null, None, &mut |_| None).unwrap();
        machine.boot(null).unwrap();
        machine
    }

    fn salvaged(machine: &Machine) -> Vec<u8> {
        let salvage = machine.salvage().unwrap();
        let memfd: File = crate::memfd::create(c"test", MFdFlags::empty()).unwrap().into();
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before)).unwrap();
        // SAFETY: the vCPUs are paused, and wait for a request.
        let saved = unsafe { salvage.save(memfd.as_raw_fd()) };
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None).unwrap();
        saved.unwrap();
        let mut bytes = vec![0; memfd.metadata().unwrap().len() as usize];
        memfd.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// The lines of a state, without those that tell the time.
    fn shown(state: &crate::machine::RestoredState) -> Vec<String> {
        let text = format!("{state:#?}");
        let told = |line: &&str| {
            let line = line.trim_start();
            !CLOCKS.iter().any(|clock| line.starts_with(&format!("{clock}:")))
        };
        text.lines().filter(told).map(str::to_owned).collect()
    }

    #[test]
    fn salvaged_state_equals_saved_state() {
        let machine = machine(2);
        let salvaged = machine.read_salvaged(&salvaged(&machine)).unwrap();
        let saved = machine.examine(machine.save(&newest()).unwrap()).unwrap();
        assert!(salvaged.lost_writes.is_empty() && salvaged.events.is_empty());
        let (ours, theirs) = (shown(&salvaged.state), shown(&saved));
        let differing: Vec<_> =
            ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs).collect();
        assert_eq!(ours.len(), theirs.len(), "{:#?}", &differing[..differing.len().min(20)]);
        // The TSC is the host's if it cannot be set, and a timer counts on.
        assert!(differing.len() <= 2 * 2, "{differing:#?}");
        assert!(ours.len() > 1000);
    }

    #[test]
    fn rejects_truncated_state() {
        let machine = machine(1);
        let whole = salvaged(&machine);
        for length in [0, 7, 16, whole.len() / 2, whole.len() - 1] {
            assert!(machine.read_salvaged(&whole[..length]).is_err(), "{length} bytes");
        }
        assert!(machine.read_salvaged(&whole).is_ok());
    }
}
