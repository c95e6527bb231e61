//! The stage after `exec`: creates a VM, loads its state, and enters it once.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VmFd};
use memmap2::MmapOptions;

use super::state::{Saved, VcpuState};
use super::{ProbeError, Stamps, kvm, number, system};

/// RAM above this begins at [`FOUR_GIB`], as on a PC.
const HOLE: u64 = 3 << 30;
const FOUR_GIB: u64 = 4 << 30;
/// Guest addresses for pages that KVM uses itself (on Intel only).
const KVM_TSS: usize = 0xfffb_d000;
const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Returns `CLOCK_MONOTONIC`, which is continuous across `exec`, in nanoseconds.
pub(super) fn monotonic_ns() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// What the new process inherited across `exec`.
pub(super) struct Kept {
    ram: OwnedFd,
    state: File,
    bytes: u64,
    cpus: u8,
    t0: u64,
}

/// Parses the command line.
pub(super) fn arguments([ram, state, bytes, cpus, t0]: [&str; 5]) -> Result<Kept, ProbeError> {
    let fd = |text| -> Result<OwnedFd, ProbeError> {
        let fd: RawFd = number(text)?;
        // SAFETY: `old` opened it for this process, nothing else owns it, and each is taken once.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let (ram, state) = (fd(ram)?, File::from(fd(state)?));
    Ok(Kept { ram, state, bytes: number(bytes)?, cpus: number(cpus)?, t0: number(t0)? })
}

impl Kept {
    /// Creates and enters the VM; `main_ns`: when `main` started.
    pub(super) fn run(self, main_ns: u64) -> Result<Stamps, ProbeError> {
        let since = |now: u64| now.saturating_sub(self.t0);
        let length = self.state.metadata().map_err(system("fstat"))?.len();
        let mut bytes = vec![0; length as usize];
        self.state.read_exact_at(&mut bytes, 0).map_err(system("read the state"))?;
        let adopted_ns = monotonic_ns();

        let kvm_fd = Kvm::new().map_err(kvm("open /dev/kvm"))?;
        let vm = kvm_fd.create_vm().map_err(kvm("KVM_CREATE_VM"))?;
        // Only Intel needs these two; elsewhere they change nothing.
        vm.set_tss_address(KVM_TSS).map_err(kvm("KVM_SET_TSS_ADDR"))?;
        vm.set_identity_map_address(KVM_IDENTITY_MAP).map_err(kvm("KVM_SET_IDENTITY_MAP_ADDR"))?;
        // Before the irqchip: once it exists, KVM waits for a grace period.
        self.memslots(&vm)?;
        vm.create_irq_chip().map_err(kvm("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(kvm("KVM_CREATE_PIT2"))?;
        let mut vcpus = Vec::with_capacity(self.cpus.into());
        for index in 0..self.cpus {
            vcpus.push(vm.create_vcpu(index.into()).map_err(kvm("KVM_CREATE_VCPU"))?);
        }
        let created_ns = monotonic_ns();

        let mut saved = Saved::new(&bytes);
        for vcpu in &vcpus {
            VcpuState::take(&mut saved)?.set(vcpu)?;
        }
        saved.set_platform(&vm)?;
        let loaded_ns = monotonic_ns();

        for vcpu in &mut vcpus {
            vcpu.set_kvm_immediate_exit(1);
            match vcpu.run() {
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(ProbeError::Ran(error.to_string())),
                Ok(exit) => return Err(ProbeError::Ran(format!("{exit:?}"))),
            }
        }
        let ran_ns = monotonic_ns();
        Ok(Stamps {
            main: since(main_ns),
            adopted: since(adopted_ns),
            created: since(created_ns),
            loaded: since(loaded_ns),
            ran: since(ran_ns),
        })
    }

    fn memslots(&self, vm: &VmFd) -> Result<(), ProbeError> {
        let memory = MmapOptions::new().len(self.bytes as usize).map_raw(&self.ram);
        // Never unmapped: the VM uses it.
        let memory = ManuallyDrop::new(memory.map_err(system("mmap RAM"))?);
        let base = memory.as_ptr().addr() as u64;
        let low = self.bytes.min(HOLE);
        let parts = [(0, 0, low), (FOUR_GIB, low, self.bytes - low)];
        for (slot, (guest_phys_addr, offset, memory_size)) in (0..).zip(parts) {
            if memory_size == 0 {
                continue;
            }
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr,
                memory_size,
                userspace_addr: base + offset,
            };
            // SAFETY: the region lies in the mapping above, which outlives the VM.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(kvm("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }
}
